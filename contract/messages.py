"""The messages that cross Redis: jobs, log entries, inbox rows. Versioned; unknown fields are ignored.

A job travels as JSON. Tokens travel as the serialized `repeated Token tokens = 1` of the public API: the worker encodes
them once, and log, inbox and gateway pass the bytes on, since serialized responses join by concatenation.
"""

import enum
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from typing import Any, Self

from contract.typed import misfit
from llamaherd.v1 import common_pb2, generation_pb2

VERSION = 1
MAX_COUNT = 2**32 - 1  # a position, a count or a chain, as the public messages have them

KNOB_LEVELS = {
    **dict.fromkeys(("min_p", "typical_p", "repetition_penalty", "frequency_penalty", "presence_penalty"), 1),
    **dict.fromkeys(("logit_bias", "n", "min_new_tokens", "stop_token_ids", "ignore_eos"), 1),
    **dict.fromkeys(("top_logprobs", "echo", "prompt_logprobs"), 1),
}
"""What a job may ask for beyond the first version, and since which level.

A worker's beat tells its own level. One of an earlier level passes over what it does not know, so gateways queue no
such job while a worker of that level lives. A job of a level that is to come has another `v`, which this one refuses.
"""
JOB_LEVEL = max(KNOB_LEVELS.values())


MOST_CHOICES = 1024  # beyond what any version accepts: room is made for each before the engine looks at the job


class MalformedMessage(ValueError):
    """Bytes in Redis that no version of this project writes.

    All that a parser raises: bytes can break one in any way there is (OverflowError, RecursionError), and what they are
    of must not take a process with it.
    """


UNREADABLE = "unreadable"
"""`Ending.error` of a generation that was set aside because it, or its log, is damaged (lib.lua)."""


class EndReason(enum.StrEnum):
    """How a generation ended. Only DONE carries what each choice ended with."""

    DONE = "DONE"  # every choice ended by itself
    CANCELLED = "CANCELLED"  # by CancelGeneration, or the last reader left
    DEADLINE = "DEADLINE"  # nobody ended it in time; closed from outside
    POISON = "POISON"  # every attempt ended its worker
    FAILED = "FAILED"  # the engine gave it up


@dataclass(frozen=True, slots=True)
class JobSampling:
    """Sampling with every default filled in; the fields are those of the public `Sampling`."""

    temperature: float
    top_k: int
    top_p: float
    seed: int
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, bias), by id
    n: int = 1


@dataclass(frozen=True, slots=True)
class JobStopping:
    """Stopping with every default filled in; the fields are those of the public `Stopping`."""

    max_new_tokens: int
    max_time_ms: int
    stop_strings: tuple[str, ...] = ()
    min_new_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """One generation as a worker needs it. The prompt is already token ids.

    Attributes:
        echo: each choice begins with the prompt's tokens; the log then begins with `num_echoed` of them.
        prompt_logprobs: the echoed tokens come with log-probabilities.
    """

    generation_id: str
    model: str
    job_class: str
    prompt_ids: tuple[int, ...]
    sampling: JobSampling
    stopping: JobStopping
    strip_leading_space: bool
    logprobs: bool = False
    trace_context: Mapping[str, str] = field(default_factory=dict)
    top_logprobs: int = 0
    echo: bool = False
    prompt_logprobs: bool = False

    @property
    def num_choices(self) -> int:
        """Answers to the one prompt."""
        return self.sampling.n

    @property
    def num_tokens(self) -> int:
        """Tokens that it may take, of prompt and outputs: what it weighs in a queue."""
        return len(self.prompt_ids) + self.num_choices * self.stopping.max_new_tokens

    @property
    def num_echoed(self) -> int:
        """Tokens at the head of a whole log that are the prompt's: the prompt once for each choice, in order."""
        return len(self.prompt_ids) * self.num_choices if self.echo else 0

    def num_output(self, num_logged: int) -> int:
        """How many of the log's tokens were generated; a log that ended early may lack a part of the echo."""
        return max(0, num_logged - self.num_echoed)

    def knobs_beyond(self, level: int) -> list[str]:
        """What it asks for that a worker of this level does not know."""
        if level >= JOB_LEVEL:
            return []
        asked = {**_present(self.sampling), **_present(self.stopping), **_present(self)}
        return [name for name in asked if KNOB_LEVELS.get(name, 0) > level]

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces; what was added to the first version is left out while it is off."""
        parts = {"sampling": _present(self.sampling), "stopping": _present(self.stopping)}
        return _to_json({"v": VERSION, **_present(self), **parts}).encode()

    @classmethod
    def from_bytes(cls, body: bytes) -> Self:
        """Parse what `to_bytes` wrote. Raises MalformedMessage."""
        try:
            raw: dict[str, Any] = json.loads(body)
            if raw["v"] != VERSION:
                raise MalformedMessage(f"job version {raw['v']}; this process reads {VERSION}")
            raw["sampling"] = JobSampling(**_known(JobSampling, raw["sampling"]))
            raw["stopping"] = JobStopping(**_known(JobStopping, raw["stopping"]))
            job = cls(**_known(cls, raw))
            for part in (job, job.sampling, job.stopping):
                if (name := misfit(part)) is not None:
                    raise MalformedMessage(f"{name} is of a wrong type or out of its bounds")
            if not 1 <= job.sampling.n <= MOST_CHOICES:
                raise MalformedMessage(f"n is {job.sampling.n}")
            return job
        except Exception as error:
            raise MalformedMessage(f"not a job: {error}") from error


_FIRST_VERSION = ("logprobs", "trace_context", "stop_strings")  # fields with a default that are always written
_to_json = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def _present(record: Job | JobSampling | JobStopping) -> dict[str, Any]:
    """The fields that say something."""
    kind: Any = type(record)  # mypy takes no class for hashable
    pairs = ((name, getattr(record, name), off) for name, off in _offs(kind).items())
    return {name: value for name, value, off in pairs if value != off}


def _known(kind: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that this version knows; JSON's lists as the tuples that they were."""
    names = _offs(kind)
    return {name: _frozen(value) for name, value in raw.items() if name in names}


@cache
def _offs(kind: type[Any]) -> Mapping[str, Any]:
    """Every field, and the value with which it is left out; MISSING, which is no value, for one that never is."""
    return {each.name: MISSING if each.name in _FIRST_VERSION else each.default for each in fields(kind)}


def _frozen(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return tuple(map(_frozen, value)) if list in map(type, value) else tuple(value)


@dataclass(frozen=True, slots=True)
class ChoiceEnd:
    """How one choice ended; `reason` is a name of the public FinishReason without its prefix."""

    choice: int
    reason: str
    num_tokens: int
    stop_string: str = ""
    text: str = ""


def encode_choice_ends(ends: Sequence[ChoiceEnd]) -> bytes:
    """JSON list; b'' for none."""
    if not ends:
        return b""
    return _to_json([asdict(end) for end in ends]).encode()


def decode_choice_ends(body: bytes) -> tuple[ChoiceEnd, ...]:
    """What `encode_choice_ends` wrote. Raises MalformedMessage."""
    if not body:
        return ()
    try:
        ends = tuple(ChoiceEnd(**{k: row[k] for k in ChoiceEnd.__slots__ if k in row}) for row in json.loads(body))
        for end in ends:
            if (name := misfit(end)) is not None or max(end.choice, end.num_tokens) > MAX_COUNT:
                raise MalformedMessage(f"{name or 'a number'} is of a wrong type or out of its bounds")
        return ends
    except Exception as error:
        raise MalformedMessage(f"not choice ends: {error}") from error


@dataclass(frozen=True, slots=True)
class Alternative:
    """One of the likeliest tokens at a token's place; `text` is its own, by itself."""

    token_id: int
    logprob: float
    text: str


@dataclass(slots=True)  # not frozen: setting the fields of one that is takes 2 us
class LoggedToken:
    """One token as the log holds it. `position` counts over all choices."""

    choice: int
    index: int
    position: int
    token_id: int
    text: str
    logprob: float | None = None
    alternatives: tuple[Alternative, ...] = ()  # likeliest first


CHAIN_START = 0


def extend_chain(chain: int, choice: int, token_id: int) -> int:
    """CRC-32 over (choice, id) of every token so far, two little-endian 32-bit words each."""
    return zlib.crc32(choice.to_bytes(4, "little") + token_id.to_bytes(4, "little"), chain)


def encode_tokens(tokens: Sequence[LoggedToken], chain: int) -> tuple[bytes, int]:
    """Serialized tokens for log and inbox, and the chain after the last.

    Args:
        tokens: in order of position.
        chain: the chain before the first.
    """
    response = generation_pb2.GenerateResponse()
    for token in tokens:
        chain = extend_chain(chain, token.choice, token.token_id)
        encoded = response.tokens.add()  # fields given to `add` take twice as long
        encoded.choice = token.choice
        encoded.index = token.index
        encoded.position = token.position
        encoded.id = token.token_id
        encoded.text = token.text
        encoded.chain = chain
        if token.logprob is not None:
            encoded.logprob = token.logprob
        for each in token.alternatives:
            encoded.top_logprobs.add(id=each.token_id, logprob=each.logprob, text=each.text)
    return response.SerializeToString(), chain


def to_logged(token: common_pb2.Token) -> LoggedToken:
    """A token of the log as a worker appends it."""
    return LoggedToken(
        choice=token.choice,
        index=token.index,
        position=token.position,
        token_id=token.id,
        text=token.text,
        logprob=token.logprob if token.HasField("logprob") else None,
        alternatives=tuple(Alternative(each.id, each.logprob, each.text) for each in token.top_logprobs),
    )


def decode_tokens(body: bytes) -> Sequence[common_pb2.Token]:
    """The tokens of one or several joined bodies. Raises MalformedMessage."""
    try:
        return generation_pb2.GenerateResponse.FromString(body).tokens
    except Exception as error:  # protobuf's DecodeError has no public base of its own in every runtime
        raise MalformedMessage(f"not tokens: {error}") from error


@dataclass(frozen=True, slots=True)
class Times:
    """When things happened to a generation, in milliseconds of Redis' clock; 0 is not yet."""

    accepted_ms: int
    taken_ms: int
    first_token_ms: int
    last_token_ms: int
    ended_ms: int


@dataclass(slots=True)  # not frozen: setting the fields of one that is takes 2 us
class TokenRow:
    """Tokens at positions t0 to t0 + n - 1 = end - 1. `chain0` is the chain before t0."""

    t0: int
    end: int
    chain0: int
    body: bytes
    choice_ends: tuple[ChoiceEnd, ...] = ()


@dataclass(frozen=True, slots=True)
class AttemptMark:
    """A worker took the generation when it had `position` tokens."""

    position: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Ending:
    """The terminal entry: nothing comes after it."""

    num_tokens: int
    reason: EndReason
    choice_ends: tuple[ChoiceEnd, ...]
    attempts: int
    times: Times
    error: str = ""


LogEntry = TokenRow | AttemptMark | Ending
