"""What readers of a measurement see: every token checked by its id, position and chain, and counted in its time."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from bench.histogram import Histogram
from bench.paced import paced_id
from contract.messages import CHAIN_START, extend_chain
from llamaherd.v1 import common_pb2


@dataclass(slots=True)
class Seen:
    """What came between two points in time (time.monotonic()); `ended` and what is wrong of the whole run.

    Attributes:
        first: from the request to the first token.
        gaps: between two messages with tokens of one answer.
    """

    begin_s: float
    end_s: float
    tokens: int = 0
    messages: int = 0
    ended: int = 0
    wrong: list[str] = field(default_factory=list)
    first: Histogram = field(default_factory=Histogram)
    gaps: Histogram = field(default_factory=Histogram)

    def to_json(self) -> dict[str, object]:
        """For the process that started this one."""
        return {
            **{name: getattr(self, name) for name in ("tokens", "messages", "ended", "wrong")},
            "first": self.first.to_json(),
            "gaps": self.gaps.to_json(),
        }


class Checked:
    """One answer of the paced model, from the moment it is asked for."""

    def __init__(self, seen: Seen, seed: int) -> None:
        """Args: seed: see `paced_id`."""
        self._seen = seen
        self._seed = seed
        self._last_s = time.monotonic()
        self._position, self._chain, self._is_right = 0, CHAIN_START, True

    def take(self, tokens: Iterable[common_pb2.Token]) -> None:
        """The tokens of the next message; there may be none."""
        now_s, before = time.monotonic(), self._position
        position, chain, seed = before, self._chain, self._seed
        for token in tokens:
            chain = extend_chain(chain, 0, token.id)
            self._is_right &= token.id == paced_id(seed, position)
            self._is_right &= token.position == position and token.chain == chain
            position += 1
        if position == before:
            return
        seen = self._seen
        if seen.begin_s <= now_s < seen.end_s:
            (seen.gaps if before else seen.first).add(now_s - self._last_s)
            seen.tokens += position - before
            seen.messages += 1
        self._position, self._chain, self._last_s = position, chain, now_s

    def ended(self, length: int, num_told: int) -> None:
        """It was to have `length` tokens, and its last message told `num_told` (-1: there was none)."""
        self._seen.ended += 1
        if not self._is_right or not self._position == length == num_told:
            text = f"{self._position} of {length} tokens, {num_told} told; ids and chains right: {self._is_right}"
            self._seen.wrong.append(text)
