"""Durations in buckets 2 % wide: percentiles of any number of them, from several processes, in little memory."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Self

_WIDTH = math.log(1.02)
_LEAST_S = 1e-6


class Histogram:
    """Counts of durations."""

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self._counts: Counter[int] = Counter(counts)

    def add(self, duration_s: float) -> None:
        """Count one."""
        self._counts[int(math.log(max(duration_s, _LEAST_S) / _LEAST_S) / _WIDTH)] += 1

    def merge(self, other: Self) -> None:
        """Count what `other` has counted."""
        self._counts.update(other._counts)

    def percentile_ms(self, percent: float) -> float | None:
        """The duration that so many percent do not exceed, to 2 %; None of nothing."""
        left = math.ceil(self._counts.total() * percent / 100)
        for bucket, count in sorted(self._counts.items()):
            left -= count
            if left <= 0:
                return 1e3 * _LEAST_S * math.exp((bucket + 0.5) * _WIDTH)
        return None

    def to_json(self) -> dict[str, int]:
        """For another process."""
        return {str(bucket): count for bucket, count in self._counts.items()}

    @classmethod
    def from_json(cls, counts: Mapping[str, int]) -> Self:
        """What `to_json` gave."""
        return cls({int(bucket): count for bucket, count in counts.items()})
