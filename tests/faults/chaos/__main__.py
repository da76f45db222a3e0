"""`python -m tests.faults.chaos --kills 1000 --seed 7`: strikes a herd under load and tells what its clients saw.

Workers and gateways are killed, frozen and drained, Redis is restarted and paused, clients stall, cancel and change
gateways; every token that a client gets is compared with an undisturbed run's. The order of the blows is the seed's;
their moments are the machine's.
"""

import argparse
import asyncio
import sys

from tests.faults.chaos.run import Plan, run


def main() -> int:
    """Run; 0 if nothing was lost, duplicated, wrong or hung."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="SIGKILLs of workers and gateways")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--streams", type=int, default=64, help="clients at the same time")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=60.0, help="no blow after this, or after SIGTERM")
    said = parser.parse_args()
    plan = Plan(said.kills, said.seed, said.streams, said.workers, said.gateways, said.minutes * 60)
    report = asyncio.run(run(plan))
    print("\n".join(report.lines), flush=True)
    return 0 if report.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
