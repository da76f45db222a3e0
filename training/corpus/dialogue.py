"""What one piece of the corpus is: a dialogue of turns, each with the answer that the model is taught."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class Split(Enum):
    """Which phrasings, names and sums may be drawn: those trained on, or those kept for the test."""

    SEEN = "seen"
    HELD_OUT = "held_out"


class Check(Enum):
    """How an answer is graded."""

    EXACT = "exact"  # the text must be the expected answer
    STORY = "story"  # free text: every word of `must_mention` occurs, and it closes with "The end."


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer.

    `brief` is the answer under a system prompt that asks for brevity; empty means that `answer` is as short as it gets.
    `also` are other answers that a test accepts and training never shows.
    """

    user: str
    answer: str
    brief: str = ""
    check: Check = Check.EXACT
    must_mention: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    def answered(self, answer: str) -> Turn:
        """The same question with another expected answer, and no other."""
        return replace(self, answer=answer, also=())

    def accepts(self, text: str) -> bool:
        """Whether a model's text is a right answer, surrounding blanks aside."""
        text = text.strip()
        if self.check is Check.EXACT:
            return text == self.answer.strip() or text in self.also
        return text.endswith("The end.") and all(word in text for word in self.must_mention)


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Turns in order, with an optional system prompt. A test grades the last turn; the earlier ones are given."""

    turns: tuple[Turn, ...]
    system: str = ""
