"""Whether anything grows: memory of every process and the number of Redis' keys, sampled through a whole run."""

import asyncio
import statistics
import time
from collections import defaultdict
from pathlib import Path

import redis.asyncio
from redis.exceptions import RedisError

from tests.faults.chaos.herd import Herd
from tests.herd_process import children_of

EVERY_S = 5.0
MIB = 1 << 20


class Memory:
    """Samples by what they are of: gateways, supervisors, engines, what serves them, Redis; and its keys."""

    def __init__(self, herd: Herd, client: "redis.asyncio.Redis") -> None:
        self._herd = herd
        self._client = client
        self._samples: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._begun_s = time.monotonic()

    async def sample_for_ever(self) -> None:
        """One sample of everything every EVERY_S."""
        while True:
            await self._sample()
            await asyncio.sleep(EVERY_S)

    async def _sample(self) -> None:
        now_s = time.monotonic() - self._begun_s
        pairs = [children_of(worker.child.pid) for worker in self._herd.workers]
        groups = {
            "gateway": [each.child.pid for each in self._herd.gateways],
            "supervisor": [each.child.pid for each in self._herd.workers],
            "engine": [pair[0] for pair in pairs if len(pair) == 2],
            "serving": [pair[1] for pair in pairs if len(pair) == 2],
            "redis": [self._herd.server.process.pid],
        }
        for name, pids in groups.items():
            sizes = [size for pid in pids if (size := _resident_bytes(pid))]
            if sizes:
                self._samples[f"{name}_mib"].append((now_s, max(sizes) / MIB))
        try:
            self._samples["redis_keys"].append((now_s, float(await self._client.dbsize())))
        except RedisError:
            return

    def lines(self) -> list[str]:
        """The median of the largest, of each third of the run."""
        last_s = max((s for samples in self._samples.values() for s, _ in samples), default=0.0)
        words = []
        for name, samples in self._samples.items():
            thirds: list[list[float]] = [[], [], []]
            for at_s, value in samples:
                thirds[min(2, int(3 * at_s / (last_s + 1e-9)))].append(value)
            medians = "/".join(f"{statistics.median(third):.0f}" for third in thirds if third)
            words.append(f"{name}={medians}")
        return [f"memory, by thirds of {last_s:.0f} s: " + " ".join(words)]


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    except (OSError, IndexError):
        return 0
