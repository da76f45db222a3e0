"""`python -m worker`: one worker. The settings are HERD_WORKER_* variables; SIGTERM drains, a second signal ends.

The engine process takes seconds to load torch: it starts as soon as the settings are known to be right, with the one
that serves, and what a supervisor needs is imported meanwhile.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import closing

from contract import exit_status
from telemetry.environment import WrongSettings, read
from worker.pair import ProcessPair
from worker.settings import WorkerSettings

ENGINE_COMMAND = (sys.executable, "-m", "worker.run_engine")


def main(engine_command: Sequence[str] = ENGINE_COMMAND) -> int:
    """Run a worker; return the exit status.

    Args:
        engine_command: starts the engine process.
    """
    try:
        settings = read(WorkerSettings, os.environ)
    except WrongSettings as error:
        print(error, file=sys.stderr)
        return exit_status.UNFIT
    with closing(ProcessPair(engine_command, stuck_after_s=settings.stuck_after_s)) as pair:
        from worker.supervise import supervise

        return supervise(settings, pair, engine_command)


if __name__ == "__main__":
    sys.exit(main())
