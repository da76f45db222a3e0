"""What goes into the engine (requests), what comes out (events), and the state of a sequence. No torch."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field

from worker.engine.batch import SequenceSlice

MAX_CHOICES = 16
MAX_LOGIT_BIASES = 1024
MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. Raises ValueError for a value out of bounds.

    Attributes:
        temperature: divisor of the logits, >= 0; 0 means greedy.
        top_k: how many of the likeliest tokens are kept; 0 means all.
        top_p: probability mass that is kept, 0 to 1; 1.0 means all.
        seed: unsigned 64 bits; the same seed, choice and index give the same draw on any worker.
        min_p: least probability that is kept, as a share of the likeliest token's, 0 to 1; 0 means all.
        typical_p: mass of the locally typical set, over 0 to 1; 1.0 means all.
        repetition_penalty: over 0 to 100, of tokens in prompt or output; 1.0 is none.
        frequency_penalty: -100 to 100, for each time a token stands in the output.
        presence_penalty: -100 to 100, of tokens that stand in the output.
        logit_bias: (token id, -100 to 100) pairs, added to the logits; each id once, at most MAX_LOGIT_BIASES.
    """

    temperature: float
    top_k: int
    top_p: float
    seed: int
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}; it must be finite and at least 0")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 0")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is {self.seed}; it must fit 64 unsigned bits")
        _require_between("top_p", self.top_p, 0, 1)
        _require_between("min_p", self.min_p, 0, 1)
        _require_between("typical_p", self.typical_p, 0, 1, excludes_low=True)
        _require_between("repetition_penalty", self.repetition_penalty, 0, 100, excludes_low=True)
        _require_between("frequency_penalty", self.frequency_penalty, -100, 100)
        _require_between("presence_penalty", self.presence_penalty, -100, 100)
        num_biases, num_ids = len(self.logit_bias), len({token_id for token_id, _ in self.logit_bias})
        if num_ids < num_biases or num_biases > MAX_LOGIT_BIASES:
            raise ValueError(
                f"logit_bias names {num_ids} ids in {num_biases} entries; it must name each once, "
                f"at most {MAX_LOGIT_BIASES}"
            )
        for _, bias in self.logit_bias:
            _require_between("logit_bias", bias, -100, 100)


@dataclass(frozen=True, slots=True)
class StoppingParams:
    """When a choice ends. Raises ValueError for a value out of bounds.

    Attributes:
        max_new_tokens: tokens a choice may have, those of earlier attempts included; >= 1.
        stop_strings: none of them empty; the one found is not part of the text.
        eos_token_ids: each ends the choice unless `ignore_eos`; its own piece is not text.
        stop_token_ids: each ends the choice whatever `ignore_eos` says; its own piece is not text.
        min_new_tokens: before this many tokens of a choice none is drawn that ends it by its id. A stop string
            ends it all the same.
    """

    max_new_tokens: int
    stop_strings: tuple[str, ...]
    eos_token_ids: tuple[int, ...]
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if self.min_new_tokens < 0:
            raise ValueError(f"min_new_tokens is {self.min_new_tokens}; it must be at least 0")
        if "" in self.stop_strings:
            raise ValueError("a stop string is empty")

    @property
    def ending_ids(self) -> frozenset[int]:
        """Tokens that end a choice by their id."""
        return frozenset(self.stop_token_ids if self.ignore_eos else (*self.stop_token_ids, *self.eos_token_ids))


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One generation, new or continued. Raises ValueError for a value out of bounds.

    Attributes:
        prompt_ids: at least one token.
        output_ids: of a single choice, the tokens already in the log (a continuation); the engine goes on at the
            next index. The short form of `logged`; only one of them may be given.
        strip_leading_space: chat: the space that the tokenizer puts before the first piece is not text;
            completion of a prompt: it is.
        deadline_s: `time.monotonic()` at which the generation ends with TIME_LIMIT.
        num_choices: answers to the one prompt, each drawn with its own random numbers; 1 to MAX_CHOICES.
        logged: (choice, token id) of every token already in the log, in the order of the log.
        num_top_logprobs: alternatives that come with each token, output and prompt; 0 to MAX_TOP_LOGPROBS.
        wants_prompt_logprobs: a PromptLogprobsEvent comes before the first token.
    """

    generation_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    stopping: StoppingParams
    output_ids: tuple[int, ...] = ()
    strip_leading_space: bool = True
    deadline_s: float | None = None
    num_choices: int = 1
    logged: tuple[tuple[int, int], ...] = ()
    num_top_logprobs: int = 0
    wants_prompt_logprobs: bool = False

    def __post_init__(self) -> None:
        _require_between("num_choices", self.num_choices, 1, MAX_CHOICES)
        _require_between("num_top_logprobs", self.num_top_logprobs, 0, MAX_TOP_LOGPROBS)
        if self.output_ids and (self.logged or self.num_choices > 1):
            raise ValueError("output_ids is for one choice and without logged")
        for choice in {choice for choice, _ in self.logged}:
            _require_between("the choice of a logged token", choice, 0, self.num_choices - 1)

    @property
    def outputs(self) -> list[list[int]]:
        """The logged tokens of each choice."""
        outputs: list[list[int]] = [[] for _ in range(self.num_choices)]
        outputs[0] += self.output_ids
        for choice, token_id in self.logged:
            outputs[choice].append(token_id)
        return outputs


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
class TokenLogprob:
    """A token and its natural log-probability under the model's own distribution (temperature 1, nothing bent)."""

    token_id: int
    logprob: float


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
class PromptLogprob:
    """One token of the prompt: its logprob after the tokens before it, and the likeliest tokens at its place."""

    token_id: int
    logprob: float
    top_logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class PromptLogprobsEvent:
    """Once per generation that wants it, before its first token; `tokens` are the prompt's, all but the first."""

    generation_id: str
    tokens: tuple[PromptLogprob, ...]


@dataclass(slots=True)  # not frozen: setting the fields of one that is takes 2 us
class TokenEvent:
    """One new token.

    Attributes:
        index: of the token in its choice, counting those that were logged.
        text: what this token releases; may be ''.
        logprob: of the token under the model's own distribution (temperature 1, nothing bent or filtered).
        top_logprobs: the likeliest tokens at this place, likeliest first; as many as the request wants.
    """

    generation_id: str
    choice: int
    index: int
    token_id: int
    text: str
    logprob: float
    top_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class FinishEvent:
    """The last event of a choice; each choice of a request has one, those that had ended in the log too.

    FAILED alone ends the whole generation: no event of any of its choices follows.

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


StepEvent = StartedEvent | PrefilledEvent | PromptLogprobsEvent | TokenEvent | FinishEvent


@dataclass(slots=True, eq=False)
class Sequence:
    """Token ids and KV blocks of one choice: all that the scheduler needs to know of it.

    Invariant: num_computed < len(token_ids), and the block table covers num_computed positions. A token below 0 has
    been chosen but is not known yet (SequenceSlice); between steps only the last one may be.

    Attributes:
        arrival: rank among all sequences; the smaller is the older.
        token_ids: prompt, then the tokens generated so far.
        num_computed: leading positions whose keys and values are in the cache.
        block_table: physical block of each logical block; empty while the sequence waits.
        is_held: not to be scheduled for now; its blocks stay.
        is_full: it needs no further step: the token that is not known yet is its last.
        choice: which of its generation's.
        num_prompt: leading tokens that were not generated.
        num_common: leading tokens that every sequence of this generation has; 0 if there is no other.
        wants_all_logits: the logits after each token are wanted, not only those after the last.
    """

    generation_id: str
    arrival: int
    token_ids: list[int]
    num_computed: int = 0
    block_table: list[int] = field(default_factory=list)
    is_held: bool = False
    is_full: bool = False
    choice: int = 0
    num_prompt: int = 0
    num_common: int = 0
    wants_all_logits: bool = False

    @property
    def num_pending(self) -> int:
        """Tokens that are not in the KV cache yet; 1 while decoding."""
        return len(self.token_ids) - self.num_computed

    @property
    def is_idle(self) -> bool:
        """Not to be scheduled, though it has a pending token."""
        return self.is_held or self.is_full

    @property
    def num_unknown(self) -> int:
        """Tokens at its end that have been chosen but are not known yet; at most 2."""
        return sum(token_id < 0 for token_id in self.token_ids[-2:])


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
            wants_all_logits=self.sequence.wants_all_logits,
        )


def _require_between(name: str, value: float, low: float, high: float, *, excludes_low: bool = False) -> None:
    if not low <= value <= high or (excludes_low and value == low):
        bounds = f"over {low} to {high}" if excludes_low else f"between {low} and {high}"
        raise ValueError(f"{name} is {value}; it must lie {bounds}")
