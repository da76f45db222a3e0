"""What each new token of a choice does: the text it releases, and whether it ends the choice. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from worker.engine.detokenizer import Detokenizer, TokenPieces
from worker.engine.sequence import FinishReason, StoppingParams
from worker.engine.stop_strings import StopMatcher


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a choice ended; `stop_string` with STOP_STRING only."""

    reason: FinishReason
    stop_string: str | None = None


class Choice:
    """Text and end of one choice, a function of its tokens alone: replaying them restores it anywhere.

    Invariant: the texts that `push` and `flush` returned are, joined, the text of the tokens read so far, cut
    before the first stop string, less what may still become part of a stop string or of a character.
    """

    def __init__(self, pieces: TokenPieces, stopping: StoppingParams, *, strip_leading_space: bool) -> None:
        self._stopping = stopping
        self._detokenizer = Detokenizer(pieces, strip_leading_space=strip_leading_space)
        self._matcher = StopMatcher(stopping.stop_strings)
        self.num_tokens = 0
        self.ending: Ending | None = None

    def require_open(self) -> None:
        """Raise ValueError if the choice has ended: its log must not go on."""
        if self.ending is not None:
            reason = self.ending.reason.name
            raise ValueError(f"the choice ended with {reason} at token {self.num_tokens - 1}, but its log goes on")

    def push(self, token_id: int) -> str:
        """Read the next token, set `ending` if it is the last, and return the text that it releases."""
        assert self.ending is None, "the choice has ended"
        self.num_tokens += 1
        ends_by_id = self._ends_by_id(token_id)
        if ends_by_id is not None:
            return self._end_with(ends_by_id)
        text, stop_string = self._matcher.push(self._detokenizer.push(token_id))
        if stop_string is not None:
            self.ending = Ending(FinishReason.STOP_STRING, stop_string)
        elif self.num_tokens == self._stopping.max_new_tokens:
            text += self._end_with(FinishReason.LENGTH)
        return text

    def flush(self) -> str:
        """The text held back, for a choice that ends without a new token."""
        return self._flush()[0]

    def _ends_by_id(self, token_id: int) -> FinishReason | None:
        if token_id in self._stopping.eos_token_ids and not self._stopping.ignore_eos:
            return FinishReason.EOS
        return FinishReason.STOP_TOKEN if token_id in self._stopping.stop_token_ids else None

    def _end_with(self, reason: FinishReason) -> str:
        """Flush and end; what is flushed may complete a stop string, and then that is the reason."""
        text, stop_string = self._flush()
        is_stop = stop_string is not None
        self.ending = Ending(FinishReason.STOP_STRING if is_stop else reason, stop_string)
        return text

    def _flush(self) -> tuple[str, str | None]:
        text, stop_string = self._matcher.push(self._detokenizer.flush())
        if stop_string is None:
            tail, stop_string = self._matcher.flush()
            text += tail
        return text, stop_string
