"""Every way a call can fail, named by its cause.

HerdError
├── InvalidRequest      a field is wrong; `violations` tells which
├── NotFound
│   ├── UnknownModel
│   ├── UnknownGeneration   none of this id, or another caller's, or expired
│   └── UnknownSession      no such conversation, or another caller's, or expired
├── RequestIdReused     this request_id stands for another request
├── SessionTaken        another connection goes on with the conversation
├── TurnRunning         the conversation is in the middle of a turn
├── NotAllowed          the key is missing, wrong, or not good for this
├── QuotaExceeded       the caller holds all it may hold; `retry_after_s`
├── Unavailable         the same call may succeed later; the client has tried, and gave up
│   ├── Overloaded      the model's queue is full
│   ├── Draining        this gateway goes away, and there was no other
│   ├── NoWorker        nobody serves the model at the moment
│   ├── BrokerDown      the service's Redis does not answer
│   ├── ReaderStalled   this client read nothing for so long that the gateway ended the stream
│   └── ConnectionBroken    nobody answered, or the connection broke
├── DeadlineExceeded    `timeout_s` is over
│   └── DeadlineTooShort    it would be, before a worker began; nothing was queued
├── Cancelled           somebody else ended the call
├── PositionAhead       `from_position` lies beyond the end of the generation
├── DataLoss            the service no longer has what was delivered, or cannot read it; going on would fork the text
├── Unimplemented       this gateway does not serve that
└── InternalError
    ├── PoisonJob       every worker that ran this job died of it
    └── GenerationFailed    the engine gave this generation up
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "llamaherd.dev"
_DETAILS_KEY = "grpc-status-details-bin"
_PUSHBACK_KEY = "grpc-retry-pushback-ms"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field that is wrong: its path in the request (`spec.sampling.temperature`) and the fact."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What a status says beside its code and text.

    Attributes:
        reason: the service's own word for the cause; empty if a proxy or the transport made the status.
        metadata: what goes with the reason, such as the number of attempts.
        retry_after_s: when a retry may succeed; None if that was not said.
        forbids_retry: the service asks not to be asked again.
    """

    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[FieldViolation, ...] = ()
    retry_after_s: float | None = None
    forbids_retry: bool = False


class HerdError(Exception):
    """A call failed. `code` is the gRPC status code; the attributes are those of `Facts`."""

    def __init__(self, text: str, code: grpc.StatusCode, facts: Facts | None = None) -> None:
        super().__init__(text)
        facts = facts or Facts()
        self.code = code
        self.reason = facts.reason
        self.metadata = dict(facts.metadata)
        self.violations = facts.violations
        self.retry_after_s = facts.retry_after_s
        self.forbids_retry = facts.forbids_retry

    def __str__(self) -> str:
        return f"{self.code.name}: {self.args[0]}"


class InvalidRequest(HerdError):
    """One or more fields are wrong; `violations` names them. Nothing was started."""


class NotFound(HerdError):
    """What was asked for is not there."""


class UnknownModel(NotFound):
    """No worker has ever announced this model."""


class UnknownGeneration(NotFound):
    """No generation of this id is the caller's, or it has expired."""


class UnknownSession(NotFound):
    """No conversation of this handle is the caller's: it was ended, or nobody went on with it and it has expired."""


class SessionTaken(HerdError):
    """Another connection has resumed the conversation, and goes on with it."""


class TurnRunning(HerdError):
    """The conversation is in the middle of a turn: read it to its end, or interrupt it."""


class RequestIdReused(HerdError):
    """The request_id was used for a different request."""


class NotAllowed(HerdError):
    """The caller's key is missing, unknown, or not good for this."""


class QuotaExceeded(HerdError):
    """The caller has used up what it may use; `retry_after_s` says when to come back."""


class Unavailable(HerdError):
    """The service cannot take this now. The client retried as long as it was allowed to."""


class Overloaded(Unavailable):
    """The model's queue is full."""


class Draining(Unavailable):
    """The gateway is going away."""


class NoWorker(Unavailable):
    """The model is known, but nobody serves it at the moment."""


class BrokerDown(Unavailable):
    """The service's Redis does not answer."""


class ReaderStalled(Unavailable):
    """This client read nothing for so long that the gateway ended the stream; one that reads again goes on."""


class ConnectionBroken(Unavailable):
    """The gateway cannot be reached, or the connection to it broke."""


class DeadlineExceeded(HerdError):
    """The call's `timeout_s` is over."""


class DeadlineTooShort(DeadlineExceeded):
    """Nothing was queued: the wait alone, `metadata["estimated_wait_ms"]`, would outlast `timeout_s`."""


class Cancelled(HerdError):
    """The call was cancelled, and not by this client."""


class PositionAhead(HerdError):
    """The position asked for lies beyond the end of a finished generation."""


class DataLoss(HerdError):
    """The stream and what was delivered before do not fit together; the text cannot go on."""


class Unimplemented(HerdError):
    """The gateway does not serve this method or field."""


class InternalError(HerdError):
    """The service failed; `metadata` carries the request id to look for in its log."""


class PoisonJob(InternalError):
    """Every worker that ran this job died of it; `metadata["attempts"]` of them."""


class GenerationFailed(InternalError):
    """The engine gave this generation up."""


BY_REASON: Mapping[str, type[HerdError]] = {
    "INVALID_REQUEST": InvalidRequest,
    "UNKNOWN_MODEL": UnknownModel,
    "UNKNOWN_GENERATION": UnknownGeneration,
    "UNKNOWN_SESSION": UnknownSession,
    "SESSION_TAKEN": SessionTaken,
    "TURN_RUNNING": TurnRunning,
    "REQUEST_ID_REUSED": RequestIdReused,
    "QUOTA_EXCEEDED": QuotaExceeded,
    "UNAVAILABLE": Unavailable,
    "OVERLOADED": Overloaded,
    "DRAINING": Draining,
    "NO_WORKER": NoWorker,
    "BROKER_DOWN": BrokerDown,
    "READER_STALLED": ReaderStalled,
    "DEADLINE_PASSED": DeadlineExceeded,
    "DEADLINE_TOO_SHORT": DeadlineTooShort,
    "POSITION_AHEAD": PositionAhead,
    "LOG_BEHIND": DataLoss,
    "UNREADABLE": DataLoss,
    "POISON_JOB": PoisonJob,
    "GENERATION_FAILED": GenerationFailed,
    "UNIMPLEMENTED": Unimplemented,
    "INTERNAL": InternalError,
}
_CODE = grpc.StatusCode
_BY_CODE: Mapping[grpc.StatusCode, type[HerdError]] = {
    _CODE.INVALID_ARGUMENT: InvalidRequest,
    _CODE.NOT_FOUND: NotFound,
    _CODE.ALREADY_EXISTS: RequestIdReused,
    _CODE.UNAUTHENTICATED: NotAllowed,
    _CODE.PERMISSION_DENIED: NotAllowed,
    _CODE.RESOURCE_EXHAUSTED: QuotaExceeded,
    _CODE.UNAVAILABLE: Unavailable,
    _CODE.DEADLINE_EXCEEDED: DeadlineExceeded,
    _CODE.CANCELLED: Cancelled,
    _CODE.OUT_OF_RANGE: PositionAhead,
    _CODE.DATA_LOSS: DataLoss,
    _CODE.UNIMPLEMENTED: Unimplemented,
    _CODE.INTERNAL: InternalError,
}
# What a status means that the service did not make: the transport, or a proxy whose gateway has gone, tells a broken
# connection by each of these (gRPC's mapping of HTTP/2 error codes to statuses).
_BROKEN = (_CODE.UNAVAILABLE, _CODE.CANCELLED, _CODE.INTERNAL, _CODE.UNKNOWN)


class FailedCall(Protocol):
    """What an RpcError of either kind of gRPC, `grpc` and `grpc.aio`, can tell."""

    def code(self) -> grpc.StatusCode: ...

    def details(self) -> str | None: ...

    def trailing_metadata(self) -> Iterable[Any] | None: ...  # pairs; the two kinds agree on nothing else


def typed(error: FailedCall | HerdError) -> HerdError:
    """What a call that failed raised, as an error of ours."""
    return error if isinstance(error, HerdError) else _error_of(error)


def closed() -> Cancelled:
    """The error of a call by a client that is closed."""
    return Cancelled("the client is closed", grpc.StatusCode.CANCELLED)


def _error_of(call: FailedCall) -> HerdError:
    facts = _facts(dict(call.trailing_metadata() or ()))
    code, text = call.code(), call.details() or ""
    if not facts.reason and code in _BROKEN:
        return ConnectionBroken(text or "the connection broke", code, facts)
    return BY_REASON.get(facts.reason, _BY_CODE.get(code, HerdError))(text, code, facts)


def _facts(trailers: Mapping[str, str | bytes]) -> Facts:
    reason, metadata = "", dict[str, str]()
    violations: tuple[FieldViolation, ...] = ()
    retry_after_s, forbids_retry = _pushback(trailers.get(_PUSHBACK_KEY))
    for detail in _details(trailers.get(_DETAILS_KEY)):
        match detail:
            case error_details_pb2.ErrorInfo() if detail.domain == DOMAIN:
                reason, metadata = detail.reason, dict(detail.metadata)
            case error_details_pb2.BadRequest():
                violations = tuple(FieldViolation(v.field, v.description) for v in detail.field_violations)
            case error_details_pb2.RetryInfo():
                retry_after_s = detail.retry_delay.seconds + detail.retry_delay.nanos / 1e9
    return Facts(reason, metadata, violations, retry_after_s, forbids_retry)


def _pushback(value: str | bytes | None) -> tuple[float | None, bool]:
    """The delay, and whether a retry is forbidden: a negative or unreadable value does that (gRFC A6)."""
    if value is None:
        return None, False
    try:
        delay_ms = int(value)
    except ValueError:
        return None, True
    return (delay_ms / 1000, False) if delay_ms >= 0 else (None, True)


def _details(packed: str | bytes | None) -> Iterable[Message]:
    """The google.rpc details that we know, unpacked; a trailer that is none gives nothing."""
    if not isinstance(packed, bytes):
        return
    try:
        details = status_pb2.Status.FromString(packed).details
    except DecodeError:
        return
    for detail in details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            message = kind()
            if detail.Is(kind.DESCRIPTOR) and detail.Unpack(message):
                yield message
