"""The messages that cross Redis: jobs, log entries, inbox rows. Versioned; unknown fields are ignored.

A job travels as JSON. Tokens travel as the serialized `repeated Token tokens = 1` of the public API: the worker encodes
them once, and log, inbox and gateway pass the bytes on, since serialized responses join by concatenation.
"""

import enum
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from llamaherd.v1 import common_pb2, generation_pb2

VERSION = 1


class MalformedMessage(ValueError):
    """Bytes in Redis that no version of this project writes."""


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


@dataclass(frozen=True, slots=True)
class JobStopping:
    """Stopping with every default filled in; the fields are those of the public `Stopping`."""

    max_new_tokens: int
    max_time_ms: int
    stop_strings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """One generation as a worker needs it. The prompt is already token ids."""

    generation_id: str
    model: str
    job_class: str
    prompt_ids: tuple[int, ...]
    sampling: JobSampling
    stopping: JobStopping
    strip_leading_space: bool
    logprobs: bool = False
    trace_context: Mapping[str, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces."""
        return json.dumps({"v": VERSION, **asdict(self)}, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, body: bytes) -> Self:
        """Parse what `to_bytes` wrote. Raises MalformedMessage."""
        try:
            raw: dict[str, Any] = json.loads(body)
            if raw["v"] != VERSION:
                raise MalformedMessage(f"job version {raw['v']}; this process reads {VERSION}")
            stopping = raw["stopping"]
            return cls(
                generation_id=raw["generation_id"],
                model=raw["model"],
                job_class=raw["job_class"],
                prompt_ids=tuple(raw["prompt_ids"]),
                sampling=JobSampling(**{k: raw["sampling"][k] for k in JobSampling.__slots__}),
                stopping=JobStopping(
                    max_new_tokens=stopping["max_new_tokens"],
                    max_time_ms=stopping["max_time_ms"],
                    stop_strings=tuple(stopping["stop_strings"]),
                ),
                strip_leading_space=raw["strip_leading_space"],
                logprobs=raw.get("logprobs", False),
                trace_context=dict(raw.get("trace_context", {})),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise MalformedMessage(f"not a job: {error}") from error


@dataclass(frozen=True, slots=True)
class ChoiceEnd:
    """How one choice ended; `reason` is a name of the public FinishReason without its prefix."""

    choice: int
    reason: str
    num_tokens: int
    stop_string: str = ""
    text: str = ""


def encode_choice_ends(ends: Iterable[ChoiceEnd]) -> bytes:
    """JSON list; b'' for none."""
    rows = [asdict(end) for end in ends]
    return json.dumps(rows, sort_keys=True, separators=(",", ":")).encode() if rows else b""


def decode_choice_ends(body: bytes) -> tuple[ChoiceEnd, ...]:
    """What `encode_choice_ends` wrote. Raises MalformedMessage."""
    if not body:
        return ()
    try:
        return tuple(ChoiceEnd(**{k: row[k] for k in ChoiceEnd.__slots__ if k in row}) for row in json.loads(body))
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedMessage(f"not choice ends: {error}") from error


@dataclass(frozen=True, slots=True)
class LoggedToken:
    """One token as the log holds it. `position` counts over all choices."""

    choice: int
    index: int
    position: int
    token_id: int
    text: str
    logprob: float | None = None


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
        encoded = response.tokens.add(
            choice=token.choice,
            index=token.index,
            position=token.position,
            id=token.token_id,
            text=token.text,
            chain=chain,
        )
        if token.logprob is not None:
            encoded.logprob = token.logprob
    return response.SerializeToString(), chain


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


@dataclass(frozen=True, slots=True)
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
