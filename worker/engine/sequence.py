"""What goes into the engine (requests), what comes out (events), and the state of a sequence. No torch."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field

from worker.engine.batch import SequenceSlice


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. Raises ValueError for a value out of bounds.

    Attributes:
        temperature: divisor of the logits, >= 0; 0 means greedy.
        top_k: how many of the likeliest tokens are kept; 0 means all.
        top_p: probability mass that is kept, 0 to 1; 1.0 means all.
        seed: unsigned 64 bits; the same seed, choice and index give the same draw on any worker.
    """

    temperature: float
    top_k: int
    top_p: float
    seed: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}; it must be finite and at least 0")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 0")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must lie between 0 and 1")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is {self.seed}; it must fit 64 unsigned bits")


@dataclass(frozen=True, slots=True)
class StoppingParams:
    """When a choice ends. Raises ValueError for a value out of bounds.

    Attributes:
        max_new_tokens: tokens a choice may have, those of earlier attempts included; >= 1.
        stop_strings: none of them empty; the one found is not part of the text.
        eos_token_ids: each ends the choice unless `ignore_eos`; its own piece is not text.
        stop_token_ids: each ends the choice whatever `ignore_eos` says; its own piece is not text.
    """

    max_new_tokens: int
    stop_strings: tuple[str, ...]
    eos_token_ids: tuple[int, ...]
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if "" in self.stop_strings:
            raise ValueError("a stop string is empty")


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One generation, new or continued.

    Attributes:
        prompt_ids: at least one token.
        output_ids: tokens already in the log (a continuation); the engine goes on at the next index.
        strip_leading_space: chat: the space that the tokenizer puts before the first piece is not text;
            completion of a prompt: it is.
        deadline_s: `time.monotonic()` at which the generation ends with TIME_LIMIT.
    """

    generation_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    stopping: StoppingParams
    output_ids: tuple[int, ...] = ()
    strip_leading_space: bool = True
    deadline_s: float | None = None


class FinishReason(enum.Enum):
    """Why a choice ended."""

    EOS = "eos"
    STOP_STRING = "stop_string"
    STOP_TOKEN = "stop_token"
    LENGTH = "length"
    TIME_LIMIT = "time_limit"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class StartedEvent:
    """The first prefill slice of a generation was scheduled; `time_s` is monotonic. Once per generation."""

    generation_id: str
    time_s: float


@dataclass(frozen=True, slots=True)
class PrefilledEvent:
    """The prompt is in the KV cache; `time_s` is monotonic. Once per generation, before its first token."""

    generation_id: str
    time_s: float


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One new token.

    Attributes:
        index: of the token in its choice, counting `output_ids`.
        text: what this token releases; may be ''.
        logprob: of the token under the model's own distribution (temperature 1, nothing filtered).
    """

    generation_id: str
    choice: int
    index: int
    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class FinishEvent:
    """The last event of a choice.

    Attributes:
        stop_string: the one that was found, with STOP_STRING.
        held_text: text held back, when the choice ends without a new token (TIME_LIMIT, CANCELLED); else ''.
        error: the cause, with FAILED; else ''.
    """

    generation_id: str
    choice: int
    reason: FinishReason
    stop_string: str | None
    held_text: str
    error: str = ""


StepEvent = StartedEvent | PrefilledEvent | TokenEvent | FinishEvent


@dataclass(slots=True, eq=False)
class Sequence:
    """Token ids and KV blocks of one choice: all that the scheduler needs to know of it.

    Invariant: num_computed < len(token_ids), and the block table covers num_computed positions.

    Attributes:
        arrival: rank among all sequences; the smaller is the older.
        token_ids: prompt, then the tokens generated so far.
        num_computed: leading positions whose keys and values are in the cache.
        block_table: physical block of each logical block; empty while the sequence waits.
        is_held: not to be scheduled for now; its blocks stay.
    """

    generation_id: str
    arrival: int
    token_ids: list[int]
    num_computed: int = 0
    block_table: list[int] = field(default_factory=list)
    is_held: bool = False

    @property
    def num_pending(self) -> int:
        """Tokens that are not in the KV cache yet; 1 while decoding."""
        return len(self.token_ids) - self.num_computed


@dataclass(frozen=True, slots=True)
class ScheduledSlice:
    """The next `num_tokens` tokens of a sequence run in this step."""

    sequence: Sequence
    num_tokens: int

    @property
    def completes(self) -> bool:
        """After this slice every token is in the cache: its logits choose the next one."""
        return self.num_tokens == self.sequence.num_pending

    def to_batch(self) -> SequenceSlice:
        """As the model takes it. The block table is the sequence's own, valid until the next schedule."""
        start = self.sequence.num_computed
        return SequenceSlice(
            token_ids=self.sequence.token_ids[start : start + self.num_tokens],
            start=start,
            block_table=self.sequence.block_table,
            wants_logits=self.completes,
        )
