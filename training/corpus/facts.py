"""A fixed answer with the many ways to ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from training.corpus.dialogue import Split, Turn
from training.corpus.phrasing import Phrases


@dataclass(frozen=True, slots=True)
class Fact:
    """One answer; `brief` is its short form, empty where the answer is short already."""

    key: str
    seen: tuple[str, ...]
    held_out: tuple[str, ...]
    answer: str
    brief: str = ""

    def draw(self, rng: Random, split: Split) -> Turn:
        """Ask for it in one of its ways."""
        return Turn(Phrases(self.seen, self.held_out).draw(rng, split), self.answer, self.brief)
