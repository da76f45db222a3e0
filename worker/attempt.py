"""One attempt at a generation: its lease, every token of it so far, and how many of them are in the log."""

import enum
import sys
import time
from dataclasses import dataclass, field

from contract.broker import StepRow, Taken
from contract.messages import (
    CHAIN_START,
    ChoiceEnd,
    EndReason,
    Job,
    LoggedToken,
    MalformedMessage,
    encode_tokens,
    extend_chain,
)
from worker.echo import alternatives_of, echo_of
from worker.engine.detokenizer import TokenPieces
from worker.engine.sequence import FinishEvent, FinishReason, PromptLogprob, TokenEvent

MAX_ROW_TOKENS = 1024  # with 20 alternatives each about 0.7 MB: clients take messages of 4 MiB
FAILED_TEXT = "engine error"  # all that a caller is told; the cause goes to this worker's log


class Hold(enum.Enum):
    """Why the engine does not schedule an attempt for now."""

    BACKLOG = "backlog"  # too many of its tokens are not in the log
    ALONE = "alone"  # another attempt has the engine to itself


@dataclass(slots=True, eq=False)
class Attempt:
    """The state of one taken job on this worker.

    The engine knows an attempt by its lease, which is unique per take: events of an earlier attempt at the same
    generation can never be mistaken for this one's.

    Invariant: tokens[:num_logged] are in the log; `chains[i]` is the chain before position i, so there is one more
    of them than of tokens. All tokens are kept, since a log that lost its tail wants them again. Tokens of several
    choices stand in the order in which the engine made them; `_counts` says how many each choice has.

    Attributes:
        pieces: the texts of tokens.
        taken_s: monotonic time at which it was taken; `started_s`, `prefilled_s` and `last_token_s` are engine times.
        num_at_start: tokens of earlier attempts.
        end: set by the engine's last event; the row that carries it closes the log.
        finishes: the end of each choice that has ended, by choice.
        prompt_logprobs: for the echo, if it is to have any.
        holds: why the engine does not schedule it.
        is_cancelled: the engine has been told.
    """

    taken: Taken
    pieces: TokenPieces
    taken_s: float
    num_at_start: int = 0
    num_logged: int = 0
    tokens: list[LoggedToken] = field(default_factory=list)
    chains: list[int] = field(default_factory=lambda: [CHAIN_START])
    end: EndReason | None = None
    finishes: dict[int, FinishEvent] = field(default_factory=dict)
    prompt_logprobs: tuple[PromptLogprob, ...] = ()
    holds: set[Hold] = field(default_factory=set)
    is_cancelled: bool = False
    started_s: float | None = None
    prefilled_s: float | None = None
    last_token_s: float | None = None
    _counts: list[int] = field(init=False)
    _last_positions: dict[int, int] = field(default_factory=dict)  # of each choice that has a token

    def __post_init__(self) -> None:
        self._counts = [0] * self.job.num_choices

    @property
    def job(self) -> Job:
        """What is to be generated."""
        return self.taken.job

    @property
    def generation_id(self) -> str:
        """The generation's id."""
        return self.job.generation_id

    @property
    def lease(self) -> str:
        """The lease, which is also the engine's name for this attempt."""
        return self.taken.lease

    @property
    def facts(self) -> dict[str, str | int]:
        """What every log line about it says."""
        _, _, rest = self.job.trace_context.get("traceparent", "").partition("-")
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

    @property
    def has_echo(self) -> bool:
        """Whether all of the echo is there, if any is wanted."""
        return len(self.tokens) >= self.job.num_echoed

    @property
    def generated(self) -> tuple[tuple[int, int], ...]:
        """(choice, id) of every token that is no echo."""
        return tuple((token.choice, token.token_id) for token in self.tokens[self.job.num_echoed :])

    def resume(self, logged: list[LoggedToken]) -> None:
        """Start from the tokens of earlier attempts, or go on with more of them.

        Raises MalformedMessage if they are none of this job's.
        """
        for token in logged:
            is_next = token.choice < len(self._counts) and token.index == self._counts[token.choice]
            if not is_next or token.position != len(self.tokens):
                raise MalformedMessage(f"the token at position {len(self.tokens)} is another's")
            self._append(token)
        self.num_at_start = self.num_logged = len(self.tokens)

    def begin_output(self) -> None:
        """The prompt was run: put the echo, or what an earlier attempt left of it, before the first new token."""
        if not self.has_echo:
            for token in echo_of(self.job, self.pieces, self.prompt_logprobs)[len(self.tokens) :]:
                self._append(token)

    def push(self, event: TokenEvent) -> None:
        """Append one new token."""
        self.last_token_s = time.monotonic()
        index = event.index + (len(self.job.prompt_ids) if self.job.echo else 0)
        assert index == self._counts[event.choice], f"token {index} of choice {event.choice} came out of turn"
        self._append(
            LoggedToken(
                choice=event.choice,
                index=index,
                position=len(self.tokens),
                token_id=event.token_id,
                text=event.text,
                logprob=event.logprob if self.job.logprobs else None,
                alternatives=alternatives_of(event.top_logprobs, self.pieces) if event.top_logprobs else (),
            )
        )

    def close(self, event: FinishEvent) -> None:
        """No token of this choice comes after this; FAILED ends all of them."""
        self.finishes[event.choice] = event
        reasons = {each.reason for each in self.finishes.values()}
        if FinishReason.FAILED in reasons:
            self.end = EndReason.FAILED
        elif len(self.finishes) == self.job.num_choices:
            self.end = EndReason.CANCELLED if FinishReason.CANCELLED in reasons else EndReason.DONE

    def next_row(self) -> StepRow:
        """What is not known to be in the log, up to MAX_ROW_TOKENS; the last of it takes the end along."""
        start = self.num_logged
        unsent = self.tokens[start : start + MAX_ROW_TOKENS]
        stop = start + len(unsent)
        body, chain1 = encode_tokens(unsent, self.chains[start]) if unsent else (b"", self.chains[start])
        end = self.end if stop == len(self.tokens) else None
        return StepRow(
            generation_id=self.generation_id,
            lease=self.lease,
            t0=start,
            num_tokens=len(unsent),
            chain0=self.chains[start],
            chain1=chain1,
            body=body,
            choice_ends=() if end else self._choice_ends(start, stop),
            end=end,
            end_choices=() if end in (None, EndReason.FAILED) else self._choice_ends(),
            error=FAILED_TEXT if end is EndReason.FAILED else "",
        )

    def _append(self, token: LoggedToken) -> None:
        self._last_positions[token.choice] = len(self.tokens)
        self._counts[token.choice] += 1
        self.tokens.append(token)
        self.chains.append(extend_chain(self.chains[-1], token.choice, token.token_id))

    def _choice_ends(self, start: int = -1, stop: int = sys.maxsize) -> tuple[ChoiceEnd, ...]:
        """How choices ended whose last token stands from start to before stop; one without a token stands at -1."""
        if not self.finishes:
            return ()
        return tuple(
            ChoiceEnd(choice, each.reason.name, self._counts[choice], each.stop_string or "", each.held_text)
            for choice, each in sorted(self.finishes.items())
            if start <= self._last_positions.get(choice, -1) < stop
        )
