"""Every error a caller can meet, named by its cause.

ServeError
├── InvalidRequest      a field is wrong; carries the violations
├── UnknownModel        no worker has ever announced this model
├── UnknownGeneration   no such generation, or another caller's
├── RequestIdReused     this request_id was used with another body
├── UnknownSession      no such conversation: ended, expired, or another caller's
├── SessionTaken        another connection goes on with this conversation
├── TurnRunning         the conversation is in the middle of a turn
├── ReaderStalled       the client took no message for too long
├── QuotaExceeded       the caller holds all it may hold
├── Unavailable         the service cannot take this now; retry later
│   ├── Overloaded      the queue is full
│   ├── Draining        this gateway is going away
│   ├── NoWorker        nobody serves this model at the moment
│   └── BrokerDown      Redis does not answer
├── DeadlinePassed      the caller's deadline is over
│   └── DeadlineTooShort  it would be, before a worker began
├── PositionAhead       the resume point lies beyond the log
├── LogBehind           the log lost a tail that the caller has seen, or cannot be read
├── Unreadable          what is kept of a generation or a conversation is damaged
├── PoisonJob           every attempt at this job ended its worker
└── GenerationFailed    the engine gave this generation up

Only `service/status.py` knows which gRPC status each becomes. ServerUnfit is none of them: a process ends with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that is wrong: its path (`chat.messages[2].content`) and the fact."""

    field: str
    description: str


class ServeError(Exception):
    """Something a caller can cause or must be told. The text is shown to the caller."""


class InvalidRequest(ServeError):
    """One or more fields are wrong; nothing was queued."""

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = tuple(violations)


class UnknownModel(ServeError):
    """The request names a model that nobody has announced."""

    def __init__(self, model: str, known: Sequence[str]) -> None:
        listed = ", ".join(sorted(known)) or "none"
        super().__init__(f"model {model!r} is not served here; served: {listed}")
        self.model = model


class UnknownGeneration(ServeError):
    """No generation of this id belongs to this caller (or it has expired)."""

    def __init__(self, generation_id: str) -> None:
        super().__init__(f"no generation {generation_id!r}")
        self.generation_id = generation_id


class RequestIdReused(ServeError):
    """The request_id stands for another request body of the same caller."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"request_id {request_id!r} was used for a different request")
        self.request_id = request_id


class UnknownSession(ServeError):
    """No conversation belongs to this handle and caller; one that nobody went on with has expired."""

    def __init__(self) -> None:
        super().__init__("no session belongs to this handle; it has ended, or expired")


class SessionTaken(ServeError):
    """A later connection has resumed the conversation; this one can only read the turn that it follows."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session {session_id} was resumed by another connection")
        self.session_id = session_id


class TurnRunning(ServeError):
    """One turn at a time: interrupt it, or wait for its end."""

    def __init__(self, turn: int) -> None:
        super().__init__(f"turn {turn} is still running")
        self.turn = turn


class ReaderStalled(ServeError):
    """A message could not be written for so long; the generation, if it goes on, can be attached to."""

    def __init__(self, waited_s: float) -> None:
        super().__init__(f"the client took no message for {waited_s:g} s")


class QuotaExceeded(ServeError):
    """The caller holds as many generations as it may hold."""

    def __init__(self, held: int, allowed: int, retry_after_s: float = 1.0) -> None:
        super().__init__(f"the caller has {held} generations that have not ended; {allowed} are allowed")
        self.retry_after_s = retry_after_s


class Unavailable(ServeError):
    """The service cannot take the request now; the same request may succeed later."""

    def __init__(self, text: str, retry_after_s: float) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class Overloaded(Unavailable):
    """A queue is full: the model's, or what this gateway may have waiting. Whoever measures sets `retry_after_s`."""

    def __init__(
        self,
        waiting: int,
        bound: int,
        retry_after_s: float = 1.0,
        unit: str = "requests",
        where: str = "for this model",
    ) -> None:
        super().__init__(f"{waiting} {unit} are waiting {where}; {bound} may wait", retry_after_s)


class Draining(Unavailable):
    """This gateway takes no new requests; another one does."""

    def __init__(self, retry_after_s: float = 0.1) -> None:
        super().__init__("this gateway is draining", retry_after_s)


class NoWorker(Unavailable):
    """The model is known, but no live worker serves it, or one does that would pass over what was asked.

    Args:
        unknown_knobs: what a live worker of an earlier release does not know; it might be the one to take the job.
    """

    def __init__(self, model: str, retry_after_s: float = 2.0, unknown_knobs: Sequence[str] = ()) -> None:
        text = f"no live worker serves model {model!r}"
        if unknown_knobs:
            text = f"a worker of model {model!r} is of an earlier release, without {', '.join(unknown_knobs)}"
        super().__init__(text, retry_after_s)


class BrokerDown(Unavailable):
    """Redis does not answer."""

    def __init__(self, retry_after_s: float = 1.0) -> None:
        super().__init__("the broker does not answer", retry_after_s)


class DeadlinePassed(ServeError):
    """The caller's deadline is over; the generation, if it runs on, can be attached to."""

    def __init__(self, where: str) -> None:
        super().__init__(f"the deadline passed {where}")


class DeadlineTooShort(DeadlinePassed):
    """Nothing was queued: the wait alone would outlast the deadline."""

    def __init__(self, wait_s: float, left_s: float) -> None:
        ServeError.__init__(self, f"the queue takes about {wait_s:.1f} s, and the deadline leaves {left_s:.1f} s")
        self.estimated_wait_ms = round(wait_s * 1000)


class PositionAhead(ServeError):
    """The resume point lies beyond the end of the log, or beyond one that has stopped to grow."""

    def __init__(self, position: int, num_tokens: int) -> None:
        super().__init__(f"position {position} is beyond the log, which has {num_tokens} tokens")
        self.num_tokens = num_tokens


class LogBehind(ServeError):
    """The log lost a tail that this reader has been given, or cannot be read; going on would fork the text."""

    def __init__(self, position: int) -> None:
        super().__init__(f"the token log does not agree with what was delivered up to position {position}")


class Unreadable(ServeError):
    """What Redis keeps under this id is damaged, or something else has overwritten it. Asking again changes nothing.

    Args:
        subject: the id of the generation or the conversation.
        why: for the log of the service; it may quote what is kept.
    """

    def __init__(self, subject: str, why: str = "") -> None:
        super().__init__(f"what is kept of {subject} cannot be read")
        self.why = why


class PoisonJob(ServeError):
    """Every worker that ran this job died of it."""

    def __init__(self, attempts: int) -> None:
        super().__init__(f"the job ended {attempts} workers and was set aside")
        self.attempts = attempts


class GenerationFailed(ServeError):
    """The engine gave this generation up; others were not touched."""

    def __init__(self, generation_id: str, attempt: int) -> None:
        super().__init__(f"generation {generation_id} failed in attempt {attempt}")
        self.generation_id = generation_id
        self.attempt = attempt


class ServerUnfit(Exception):
    """This Redis would lose or refuse what the protocol needs."""
