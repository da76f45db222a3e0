"""Processes of readers and what a measurement takes from them and from /proc, for every benchmark of the service.

A reader says `ready`, takes a line with two points in time (time.monotonic()), and prints one JSON line at the end.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.histogram import Histogram
from bench.procfs import Usage, parse_cores, usage

SAMPLE_S = 1.0

ReaderProcess = asyncio.subprocess.Process


@dataclass(frozen=True, slots=True)
class Samples:
    """What processes used over a time, by what they are; `times_s` are those of the samples."""

    times_s: list[float]
    usages: list[dict[str, Usage]]

    @property
    def seconds(self) -> float:
        """From the first to the last."""
        return self.times_s[-1] - self.times_s[0]

    @property
    def cpu_s(self) -> dict[str, float]:
        """CPU seconds spent meanwhile."""
        first, last = self.usages[0], self.usages[-1]
        return {name: last[name].cpu_s - first[name].cpu_s for name in first}

    @property
    def rss_mib(self) -> dict[str, list[float]]:
        """Resident memory at the tenths of the time, first and last included."""
        chosen = [self.usages[round(tenth * (len(self.usages) - 1) / 10)] for tenth in range(11)]
        return {name: [round(each[name].rss_bytes / 2**20, 1) for each in chosen] for name in chosen[0]}


async def start_reader(module: str, cores: str, arguments: Mapping[str, object]) -> ReaderProcess:
    """One process of `module`, on these cores ('': any)."""
    flags = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    listed = ",".join(map(str, parse_cores(cores)))
    command = ["taskset", "-c", listed, sys.executable, "-m", module, *flags]
    return await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)


async def all_ready(readers: Sequence[ReaderProcess]) -> None:
    """Wait until each has said so."""
    for reader in readers:
        assert reader.stdout is not None
        if await reader.stdout.readline() != b"ready\n":
            raise RuntimeError("a reader ended before it was ready; its own words are above")


async def answers_of(readers: Sequence[ReaderProcess], begin_s: float, end_s: float) -> list[dict[str, Any]]:
    """Let all of them begin, and wait for what they saw."""
    line = f"{begin_s} {end_s}\n".encode()
    outputs = await asyncio.gather(*(reader.communicate(line) for reader in readers))
    return [json.loads(output) for output, _ in outputs]


async def sampled(pids: Mapping[str, list[int]], begin_s: float, end_s: float) -> Samples:
    """What these processes use between the two points in time."""
    await asyncio.sleep(begin_s - time.monotonic())
    samples = Samples([], [])
    while True:
        samples.times_s.append(time.monotonic())
        samples.usages.append({name: usage(each) for name, each in pids.items()})
        if (left_s := end_s - time.monotonic()) <= 0:
            return samples
        await asyncio.sleep(min(left_s, SAMPLE_S))


def total(seen: Sequence[Mapping[str, Any]], name: str) -> Histogram:
    """`first` or `gaps`, of all readers."""
    whole = Histogram()
    for each in seen:
        whole.merge(Histogram.from_json(each[name]))
    return whole
