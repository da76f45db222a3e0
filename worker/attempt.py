"""One attempt at a generation: its lease, every token of it so far, and how many of them are in the log."""

import time
from dataclasses import dataclass, field

from contract.broker import StepRow, Taken
from contract.messages import CHAIN_START, ChoiceEnd, EndReason, LoggedToken, encode_tokens, extend_chain
from worker.engine.sequence import FinishEvent, FinishReason, TokenEvent

FAILED_TEXT = "engine error"  # all that a caller is told; the cause goes to this worker's log
_END_REASONS = {FinishReason.CANCELLED: EndReason.CANCELLED, FinishReason.FAILED: EndReason.FAILED}


@dataclass(slots=True, eq=False)
class Attempt:
    """The state of one taken job on this worker.

    The engine knows an attempt by its lease, which is unique per take: events of an earlier attempt at the same
    generation can never be mistaken for this one's.

    Invariant: tokens[:num_logged] are in the log; `chains[i]` is the chain before position i, so there is one more
    of them than of tokens. All tokens are kept, since a log that lost its tail wants them again.

    Attributes:
        taken_s: monotonic time of the take's reply; `started_s`, `prefilled_s` and `last_token_s` are engine times.
        num_at_start: tokens of earlier attempts.
        end: set by the engine's last event; the row that carries it closes the log.
        is_held: the engine does not schedule it, because too many tokens are unpublished.
        is_cancelled: the engine has been told.
    """

    taken: Taken
    taken_s: float
    num_at_start: int = 0
    num_logged: int = 0
    tokens: list[LoggedToken] = field(default_factory=list)
    chains: list[int] = field(default_factory=lambda: [CHAIN_START])
    end: EndReason | None = None
    finish: FinishEvent | None = None
    is_held: bool = False
    is_cancelled: bool = False
    started_s: float | None = None
    prefilled_s: float | None = None
    last_token_s: float | None = None

    @property
    def generation_id(self) -> str:
        """The generation's id."""
        return self.taken.job.generation_id

    @property
    def lease(self) -> str:
        """The lease, which is also the engine's name for this attempt."""
        return self.taken.lease

    @property
    def facts(self) -> dict[str, str | int]:
        """What every log line about it says."""
        _, _, rest = self.taken.job.trace_context.get("traceparent", "").partition("-")
        trace_id = rest.partition("-")[0]
        return {"generation_id": self.generation_id, "attempt": self.taken.attempt, "trace_id": trace_id}

    @property
    def num_unpublished(self) -> int:
        """Tokens that are not known to be in the log."""
        return len(self.tokens) - self.num_logged

    @property
    def has_news(self) -> bool:
        """Whether `next_row` has something to say."""
        return self.num_unpublished > 0 or self.end is not None

    def resume(self, logged: list[LoggedToken]) -> None:
        """Start from the tokens of earlier attempts."""
        for token in logged:
            self._append(token)
        self.num_at_start = self.num_logged = len(self.tokens)

    def push(self, event: TokenEvent) -> None:
        """Append one new token."""
        self.last_token_s = time.monotonic()
        position = len(self.tokens)
        assert event.index == position, f"token {event.index} came at position {position}"
        logprob = event.logprob if self.taken.job.logprobs else None
        self._append(LoggedToken(event.choice, event.index, position, event.token_id, event.text, logprob))

    def close(self, event: FinishEvent) -> None:
        """No token comes after this."""
        self.finish = event
        self.end = _END_REASONS.get(event.reason, EndReason.DONE)

    def next_row(self) -> StepRow:
        """Everything that is not known to be in the log, the end included."""
        unsent = self.tokens[self.num_logged :]
        chain0 = self.chains[self.num_logged]
        body, chain1 = encode_tokens(unsent, chain0) if unsent else (b"", chain0)
        return StepRow(
            generation_id=self.generation_id,
            lease=self.lease,
            t0=self.num_logged,
            num_tokens=len(unsent),
            chain0=chain0,
            chain1=chain1,
            body=body,
            end=self.end,
            end_choices=self._choice_ends(),
            error=FAILED_TEXT if self.end is EndReason.FAILED else "",
        )

    def _append(self, token: LoggedToken) -> None:
        self.tokens.append(token)
        self.chains.append(extend_chain(self.chains[-1], token.choice, token.token_id))

    def _choice_ends(self) -> tuple[ChoiceEnd, ...]:
        if self.finish is None or self.end is EndReason.FAILED:
            return ()
        finish = self.finish
        stop_string = finish.stop_string or ""
        return (ChoiceEnd(finish.choice, finish.reason.name, len(self.tokens), stop_string, finish.held_text),)
