"""CPU time and memory of processes, from /proc."""

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one process, or of several together: CPU seconds since it began, and resident bytes now."""

    cpu_s: float
    rss_bytes: int


def usage(pids: list[int]) -> Usage:
    """Of all these together."""
    cpu_s, rss_bytes = 0.0, 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        cpu_s += (int(fields[11]) + int(fields[12])) / _TICKS
        rss_bytes += int(fields[21]) * _PAGE
    return Usage(cpu_s, rss_bytes)


def wakeups(pids: list[int]) -> int:
    """How often threads of these have waited for something, since they began; those that have ended do not count."""
    return sum(
        int(line.split()[1])
        for pid in pids
        for status in Path(f"/proc/{pid}/task").glob("*/status")
        for line in status.read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


def children(pid: int) -> list[int]:
    """Its child processes."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def parse_cores(text: str) -> set[int]:
    """'0,2-4' as {0, 2, 3, 4}; '' as every core that this process may use."""
    cores: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cores |= set(range(int(first), int(last or first) + 1))
    return cores or os.sched_getaffinity(0)
