"""One chaos run: a herd, its clients, the blows, and the lines that say what came of it."""

import asyncio
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import redis.asyncio

from llamaherd.v1 import generation_pb2_grpc
from tests.faults.chaos.herd import Herd, reserved_ports
from tests.faults.chaos.memory import Memory
from tests.faults.chaos.reader import Reader, Tally, read_for_ever
from tests.faults.chaos.requests import answer_all, make_specs
from tests.faults.chaos.strikes import Felt, Striker
from tests.until import until

NUM_SPECS = 48
START_S = 120.0
END_S = 120.0  # for the last streams, after the last blow


@dataclass(frozen=True, slots=True)
class Plan:
    """How much chaos. `num_kills` 0: every kind of blow once."""

    num_kills: int
    seed: int
    num_streams: int
    num_workers: int
    num_gateways: int
    max_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it."""

    lines: list[str]
    is_clean: bool
    tally: Tally
    felt: Felt


async def run(plan: Plan) -> Report:
    """Start everything, strike, end everything."""
    folder = Path(tempfile.mkdtemp(prefix="herd-"))  # a socket's path is short
    with reserved_ports(plan.num_gateways) as ports:
        herd = Herd(folder, plan.num_workers, plan.num_gateways, ports)
        try:
            async with asyncio.TaskGroup() as group:
                keeping = group.create_task(herd.keep(), name="keep")
                try:
                    report = await _strike(plan, herd)
                finally:
                    keeping.cancel()
        finally:
            await herd.close()
    if report.is_clean:
        shutil.rmtree(folder)
    else:
        report.lines.append(f"logs: {folder}")
    return report


async def _strike(plan: Plan, herd: Herd) -> Report:
    rnd = random.Random(plan.seed)
    await until(herd.is_whole, START_S, "the herd is up")
    stubs = [generation_pb2_grpc.GenerationServiceStub(channel) for channel in herd.channels]
    questions = await answer_all(stubs[0], make_specs(rnd, NUM_SPECS))
    readers: set[Reader] = set()
    tally = Tally()
    client = redis.asyncio.Redis.from_url(herd.server.url)
    striker = Striker(herd, readers, client, random.Random(rnd.random()))
    memory = Memory(herd, client)
    begun_s = time.monotonic()
    stop = asyncio.Event()

    def note(blow: str) -> None:
        at_s = time.monotonic() - begun_s
        print(f"{at_s:.0f} s: {blow}; {_line(tally, striker.felt)}", file=sys.stderr, flush=True)

    async with asyncio.TaskGroup() as group:
        clients = [
            group.create_task(read_for_ever(readers, questions, stubs, random.Random(rnd.random()), tally, stop))
            for _ in range(plan.num_streams)
        ]
        sampling = group.create_task(memory.sample_for_ever())
        await until(lambda: len(readers) == plan.num_streams, START_S, "all clients read")
        if plan.num_kills:
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, striker.stop.set)
            await striker.strike_until(plan.num_kills, begun_s + plan.max_s, note)
        else:
            await striker.strike_each(note)
        stop.set()
        _, late = await asyncio.wait(clients, timeout=END_S)
        striker.felt.hung += [f"{reader} does not end" for reader in readers]
        for task in (sampling, *late):
            task.cancel()
    await client.aclose()
    return _report(plan, tally, striker.felt, memory, time.monotonic() - begun_s)


def _report(plan: Plan, tally: Tally, felt: Felt, memory: Memory, wall_s: float) -> Report:
    counts = felt.counts
    lines = [
        _line(tally, felt),
        f"  seed={plan.seed} workers={plan.num_workers} gateways={plan.num_gateways} clients={plan.num_streams} "
        f"wall_s={wall_s:.0f} tokens={tally.tokens} cancelled={tally.cancelled} "
        f"recoveries={len(felt.recovery_s)} recovery_max_s={max(felt.recovery_s, default=0):.3f}",
        f"gateways: kills={counts['gateway kills']} streams_moved={len(tally.resume_s)} "
        + _spread("resume", tally.resume_s),
        f"redis: restarts={counts['redis restarts']} pauses={counts['redis pauses']} "
        + _spread("next_token", felt.outage_s),
        f"bursts: recoveries={len(felt.burst_s)} {_spread('recovery', felt.burst_s)}",
        "others: " + " ".join(f"{k.replace(' ', '_')}={counts[k]}" for k in sorted(counts) if "kills" not in k),
        *memory.lines(),
        f"load: {' '.join(f'{each:.1f}' for each in os.getloadavg())} on {os.cpu_count()} cores",
        *tally.examples,
        *felt.hung[:20],
    ]
    is_clean = not (tally.lost or tally.duplicated or tally.wrong or felt.hung)
    return Report(lines, is_clean, tally, felt)


def _line(tally: Tally, felt: Felt) -> str:
    return (
        f"streams={tally.streams} kills={felt.num_kills} lost={tally.lost} duplicated={tally.duplicated} "
        f"wrong={tally.wrong} hung={len(felt.hung)} {_spread('recovery', felt.recovery_s)}"
    )


def _spread(name: str, samples_s: Sequence[float]) -> str:
    ordered = sorted(samples_s) or [0.0]
    p50, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.5, 0.99))
    return f"{name}_p50_s={p50:.3f} {name}_p99_s={p99:.3f}"
