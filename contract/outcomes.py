"""What the calls of the broker take and give. Frozen values; nothing here talks to Redis."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from contract.messages import ChoiceEnd, EndReason, Job, LogEntry


class State(enum.StrEnum):
    """Of a generation; `FREE` has run before and waits for another worker."""

    QUEUED = "queued"
    RUNNING = "running"
    FREE = "free"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Submitted:
    """The generation stands: newly queued (`attached` False) or an earlier one of the same request_id."""

    generation_id: str
    attached: bool
    state: State
    num_tokens: int
    position: int  # how many of its class wait before it; 0 when attached
    place: int  # what its stream's `QueueDepth.num_delivered` will be when it is next
    accepted_ms: int
    gets_rows: bool  # False: four gateways read it already, or it is finished; the log tells


@dataclass(frozen=True, slots=True)
class Record:
    """A generation's record as a reader needs it."""

    state: State
    caller: str
    num_tokens: int
    chain: int
    attempt: int
    reason: EndReason | None
    job: Job
    accepted_ms: int
    window_ms: int
    place: int
    gets_rows: bool  # whether the gateway that attached gets inbox rows; the log tells where not


@dataclass(frozen=True, slots=True)
class Delivered:
    """A jobs entry handed to this worker: take() is to follow.

    Attributes:
        runs_alone: its next crash convicts it, so nothing else may run in this worker from before its take until it
            has proved itself by new tokens.
    """

    stream: str
    entry_id: str
    generation_id: str
    runs_alone: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Taken:
    """The lease is ours. `num_tokens` tokens are in the log; the worker reads them and goes on."""

    job: Job
    lease: str
    entry: Delivered
    attempt: int
    num_tokens: int
    chain: int
    cancel: bool
    accepted_ms: int
    deadline_ms: int
    now_ms: int


class NotTaken(enum.Enum):
    """Why an entry gave no lease."""

    LOST = "lost"  # another worker has it, or it is no longer pending to us
    DROPPED = "dropped"  # finished, expired, cancelled: acked and gone
    POISON = "it kept killing workers"  # set aside by this call, acked and gone
    DAMAGED = "its log takes no attempt"  # likewise


@dataclass(slots=True)  # not frozen: setting the fields of one that is takes 2 us
class StepRow:
    """What one generation adds in one step; `end` closes the log.

    Repeat a row whose reply was lost, or a longer one from the same `t0`. `choice_ends` ride on tokens: a choice ends
    with its last one, so there is none in a row without.
    """

    generation_id: str
    lease: str
    t0: int
    num_tokens: int
    chain0: int
    chain1: int
    body: bytes
    choice_ends: tuple[ChoiceEnd, ...] = ()  # of choices that end in this row, while others go on
    end: EndReason | None = None
    end_choices: tuple[ChoiceEnd, ...] = ()  # with end DONE or CANCELLED: how every choice ended
    error: str = ""


class RowOutcome(enum.Enum):
    """What became of one row of a step."""

    OK = "ok"
    DONE = "done"  # finished (by this row, or earlier under this lease)
    FENCED = "fenced"  # the lease is another's, or the log holds other tokens: drop the sequence
    BACK = "back"  # the log has fewer tokens than we thought: send again from `num_tokens`


@dataclass(slots=True)  # not frozen: setting the fields of one that is takes 2 us
class RowReply:
    """The log's answer to one row: it has `num_tokens` tokens now; `cancel`: somebody wants an end."""

    outcome: RowOutcome
    num_tokens: int
    cancel: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a log stands now; None in place of it means the record is gone.

    Attributes:
        deadline_ms: when it has to have ended, on Redis' clock.
        cancel_ms: since when a cancel is wanted that its owner has yet to carry out; 0 is not wanted.
    """

    state: State
    num_tokens: int
    chain: int
    attempt: int
    deadline_ms: int
    cancel_ms: int
    readers: frozenset[str]  # the gateways that get rows

    def is_overdue(self, now_ms: int, grace_ms: int) -> bool:
        """Whether anybody may close it by now."""
        since_ms = min(self.deadline_ms, self.cancel_ms or self.deadline_ms)
        return self.state is not State.FINISHED and now_ms > since_ms + grace_ms


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How far one jobs stream is worked off.

    Attributes:
        num_new: jobs that no worker has had.
        num_free: jobs that a worker had, and that wait for another.
        num_held: jobs that workers have.
        num_delivered: jobs delivered for the first time since the stream was made; its growth is the drain rate.
    """

    num_new: int
    num_free: int
    num_held: int
    num_delivered: int

    @property
    def num_waiting(self) -> int:
        """Jobs that no worker has."""
        return self.num_new + self.num_free


@dataclass(frozen=True, slots=True)
class WorkerBeat:
    """One worker as the pool knows it. `beat` counts up while it lives; `fields` are its own words.

    `at_ms` is when it last did, on Redis' clock: to show, not to judge by.
    """

    worker_id: str
    beat: str
    fields: Mapping[str, str]
    at_ms: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class GatewayBeat:
    """One gateway that has beaten within a minute, when it last did, and its own words."""

    gateway_id: str
    fields: Mapping[str, str]
    at_ms: int = field(default=0, compare=False)


@dataclass(slots=True)  # not frozen: setting the fields of one that is takes 2 us
class InboxRow:
    """One row for one stream: an entry of its log, as a hint."""

    generation_id: str
    entry: LogEntry
