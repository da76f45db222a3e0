"""What conversations cost: many that are open and idle, and some that talk, on `Chat` streams of one real gateway.

    python -m bench.chat --idle 1000 --active 64

As bench.service: real valkey with its log, real worker, only the model replaced by a pace; here a step lasts as long as
a large model's. Four rows: the active ones alone, which warms everything up; nobody; the idle ones, each of which has
had one turn; both. What an idle conversation costs is the difference between the second row and the third.
"""

import argparse
import asyncio
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis.asyncio

from bench.histogram import Histogram
from bench.procfs import parse_cores, wakeups
from bench.reader_processes import ReaderProcess, Samples, all_ready, answers_of, sampled, start_reader, total
from bench.whole_herd import Herd, Shape, whole_herd
from contract import keys

PROCESSES = ("gateway", "engine", "supervisor", "redis")
HEAD = (
    "idle | active | tokens/s | first token p50 / p99, ms | gap p50 / p99, ms | CPU ms a second: gateway | worker "
    "| Redis | gateway wakes up, times a second | MiB: gateway | Redis | wrong"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One measurement. `redis_bytes` is what the server says it uses."""

    idle: int
    active: int
    samples: Samples
    wakeups: int
    redis_bytes: int
    seen: list[dict[str, Any]]

    def cpu_ms(self, *names: str) -> float:
        """CPU milliseconds a second of these processes."""
        return 1e3 * sum(self.samples.cpu_s[name] for name in names) / self.samples.seconds

    @property
    def gateway_mib(self) -> float:
        """Resident at the end."""
        return self.samples.rss_mib["gateway"][-1]

    def to_json(self) -> dict[str, object]:
        """All figures."""
        wrong = [what for each in self.seen for what in each["wrong"]]
        return {
            "idle": self.idle,
            "active": self.active,
            "seconds": round(self.samples.seconds, 2),
            "tokens_per_s": round(sum(each["tokens"] for each in self.seen) / self.samples.seconds, 1),
            "turns": sum(each["ended"] for each in self.seen),
            "first_token_ms": {f"p{p}": total(self.seen, "first").percentile_ms(p) for p in (50, 90, 99)},
            "gap_ms": {f"p{p}": total(self.seen, "gaps").percentile_ms(p) for p in (50, 90, 99, 99.9)},
            "cpu_ms_per_s": {name: round(self.cpu_ms(name), 2) for name in self.samples.cpu_s},
            "gateway_wakeups_per_s": round(self.wakeups / self.samples.seconds, 1),
            "rss_mib": self.samples.rss_mib,
            "redis_bytes": self.redis_bytes,
            "num_wrong": len(wrong),
            "wrong": wrong[:5],
        }

    def line(self) -> str:
        """As a row of the table."""
        figures = self.to_json()
        return (
            f"| {self.idle:,} | {self.active} | {figures['tokens_per_s']:,} | {_pair(total(self.seen, 'first'))} "
            f"| {_pair(total(self.seen, 'gaps'))} | {self.cpu_ms('gateway'):.1f} "
            f"| {self.cpu_ms('engine', 'supervisor'):.1f} | {self.cpu_ms('redis'):.1f} "
            f"| {figures['gateway_wakeups_per_s']} | {self.gateway_mib:.1f} | {self.redis_bytes / 2**20:.1f} "
            f"| {figures['num_wrong']} |"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """Of one idle conversation: bytes, and CPU microseconds a second."""

    gateway_bytes: float
    redis_bytes: float
    session_bytes: float
    gateway_us: float
    redis_us: float

    def text(self) -> str:
        """In words. The record and the log of the one turn go ten minutes after it, the conversation stays."""
        return (
            f"an idle conversation: {self.gateway_bytes / 1024:.1f} KiB of the gateway, "
            f"{self.redis_bytes / 1024:.1f} KiB of Redis ({self.session_bytes / 1024:.1f} its own key, the rest its "
            f"turn's log); CPU µs a second: {self.gateway_us:.1f} of the gateway, {self.redis_us:.1f} of Redis"
        )


class Bench:
    """The measurements at one herd."""

    def __init__(self, herd: Herd, options: argparse.Namespace) -> None:
        self._herd = herd
        self._options = options
        self._redis = redis.asyncio.Redis.from_url(herd.redis_url)

    async def run(self) -> tuple[list[Row], Cost]:
        """The four rows, printed as they come, and what they come to."""
        options = self._options
        rows = [self._shown(await self._measure(0, options.active))]
        rows.append(self._shown(await self._measure(0, 0)))
        idle = await self._open(options.idle, every_ms=0)
        rows.append(self._shown(await self._measure(options.idle, 0)))
        session_bytes = await self._session_bytes()
        rows.append(self._shown(await self._measure(options.idle, options.active)))
        rows[-1].seen.extend(await answers_of(idle, 0.0, 0.0))
        await self._redis.aclose()
        return rows, _cost(rows[1], rows[2], session_bytes)

    async def _measure(self, num_idle: int, num_active: int) -> Row:
        options = self._options
        active = await self._open(num_active, options.every_ms)
        begin_s = time.monotonic() + options.warm_up
        end_s = begin_s + options.duration
        pids = {name: self._herd.pids[name] for name in PROCESSES}
        samples, num_wakeups, seen = await asyncio.gather(
            sampled(pids, begin_s, end_s), self._wakeups(begin_s, end_s), answers_of(active, begin_s, end_s)
        )
        return Row(num_idle, num_active, samples, num_wakeups, await self._redis_bytes(), seen)

    async def _open(self, sessions: int, every_ms: int) -> list[ReaderProcess]:
        options = self._options
        readers = []
        num_readers = min(options.readers, sessions)
        for number in range(num_readers):
            mine = sessions // num_readers + (number < sessions % num_readers)
            arguments = {
                "address": self._herd.address,
                "sessions": mine,
                "channels": min(options.channels, mine),
                "prompt": options.prompt,
                "new": options.new,
                "every-ms": every_ms,
                "seed": number,
            }
            cores = options.reader_cores or options.cores
            readers.append(await start_reader("bench.chat_readers", cores, arguments))
        await all_ready(readers)
        return readers

    async def _wakeups(self, begin_s: float, end_s: float) -> int:
        await asyncio.sleep(begin_s - time.monotonic())
        before = wakeups(self._herd.pids["gateway"])
        await asyncio.sleep(end_s - time.monotonic())
        return wakeups(self._herd.pids["gateway"]) - before

    async def _redis_bytes(self) -> int:
        memory: dict[str, int] = await self._redis.info("memory")
        return memory["used_memory"]

    async def _session_bytes(self) -> float:
        """The mean size of a conversation's key."""
        found = [key async for key in self._redis.scan_iter(keys.chat("*"), count=1000)]
        sizes = [await self._redis.memory_usage(key) or 0 for key in found]
        return sum(sizes) / max(1, len(sizes))

    def _shown(self, row: Row) -> Row:
        print(row.line(), flush=True)
        return row


def _cost(nobody: Row, idle: Row, session_bytes: float) -> Cost:
    number = max(1, idle.idle)
    return Cost(
        gateway_bytes=(idle.gateway_mib - nobody.gateway_mib) * 2**20 / number,
        redis_bytes=(idle.redis_bytes - nobody.redis_bytes) / number,
        session_bytes=session_bytes,
        gateway_us=1e3 * (idle.cpu_ms("gateway") - nobody.cpu_ms("gateway")) / number,
        redis_us=1e3 * (idle.cpu_ms("redis") - nobody.cpu_ms("redis")) / number,
    )


def _pair(histogram: Histogram) -> str:
    return " / ".join(f"{histogram.percentile_ms(percent) or 0:.1f}" for percent in (50, 99))


async def run(options: argparse.Namespace) -> tuple[list[Row], Cost]:
    """One herd, all rows."""
    shape = Shape(
        gateways=1,
        appendfsync="everysec",
        rate=0.0,
        step_s=options.step_ms / 1000,
        max_streams=options.active + 16 * options.readers,
        cores=frozenset(parse_cores(options.cores)),
    )
    print(f"| {HEAD} |\n|{'---|' * (HEAD.count('|') + 1)}", flush=True)
    async with whole_herd(shape) as herd:
        return await Bench(herd, options).run()


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--idle", type=int, default=1000, help="conversations that are open and silent")
    add("--active", type=int, default=64, help="conversations that talk")
    add("--every-ms", type=int, default=4000, help="each of these begins a turn so often")
    add("--step-ms", type=float, default=20.0, help="the model's step: a token of every answer that is under way")
    add("--prompt", type=int, default=32, help="tokens that a user says")
    add("--new", type=int, default=64, help="tokens of an answer")
    add("--duration", type=float, default=20.0, help="seconds that count, of each row")
    add("--warm-up", type=float, default=4.0, help="seconds before them")
    add("--readers", type=int, default=2, help="processes of the idle, and as many of the active")
    add("--channels", type=int, default=8, help="connections of one of them")
    add("--cores", default="", help="cores of all processes, as 0,1 or 2-5; empty: any")
    add("--reader-cores", default="", help="cores of the readers; empty: those of all")
    add("--json", type=Path, help="write all figures here")
    return parser.parse_args(arguments)


def main() -> None:
    """Parse the arguments, measure, write."""
    options = parse_options()
    rows, cost = asyncio.run(run(options))
    print(f"\n{cost.text()}")
    if options.json:
        figures = {"rows": [row.to_json() for row in rows], "idle_conversation": dataclasses.asdict(cost)}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.exit(any(row.to_json()["num_wrong"] for row in rows))


if __name__ == "__main__":
    main()
