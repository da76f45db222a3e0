"""Every error as a gRPC status with google.rpc details. No other module knows a gRPC code, or aborts an RPC."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from contract import errors
from contract.errors import FieldViolation, ServeError

DOMAIN = "llamaherd.dev"
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"

# A status travels in HTTP/2 trailers, which clients bound to 8 KiB by default. The text goes twice: percent-encoded,
# and with all details in base64. UTF-8 bytes.
MAX_TEXT_BYTES = 300
MAX_VIOLATIONS = 12
MAX_FIELD_BYTES = 100
MAX_DESCRIPTION_BYTES = 160


class RpcStatus(grpc.Status):
    """What `ServicerContext.abort_with_status` takes."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing_metadata: tuple[tuple[str, str | bytes], ...]):
        self.code = code
        self.details = details
        self.trailing_metadata = trailing_metadata


@dataclass(frozen=True, slots=True)
class Row:
    """How one class of errors is told: code, ErrorInfo.reason, ErrorInfo.metadata."""

    code: grpc.StatusCode
    reason: str
    metadata: Callable[[ServeError], Mapping[str, str]] = lambda error: {}


def _attribute(name: str) -> Callable[[ServeError], Mapping[str, str]]:
    return lambda error: {name: str(getattr(error, name))}


_CODE = grpc.StatusCode
TABLE: Mapping[type[ServeError], Row] = {
    errors.InvalidRequest: Row(_CODE.INVALID_ARGUMENT, "INVALID_REQUEST"),
    errors.UnknownModel: Row(_CODE.NOT_FOUND, "UNKNOWN_MODEL", _attribute("model")),
    errors.UnknownGeneration: Row(_CODE.NOT_FOUND, "UNKNOWN_GENERATION", _attribute("generation_id")),
    errors.UnknownSession: Row(_CODE.NOT_FOUND, "UNKNOWN_SESSION"),
    errors.SessionTaken: Row(_CODE.ABORTED, "SESSION_TAKEN", _attribute("session_id")),
    errors.TurnRunning: Row(_CODE.FAILED_PRECONDITION, "TURN_RUNNING", _attribute("turn")),
    errors.RequestIdReused: Row(_CODE.ALREADY_EXISTS, "REQUEST_ID_REUSED", _attribute("request_id")),
    errors.ReaderStalled: Row(_CODE.ABORTED, "READER_STALLED"),
    errors.QuotaExceeded: Row(_CODE.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"),
    errors.Unavailable: Row(_CODE.UNAVAILABLE, "UNAVAILABLE"),
    errors.Overloaded: Row(_CODE.UNAVAILABLE, "OVERLOADED"),
    errors.Draining: Row(_CODE.UNAVAILABLE, "DRAINING"),
    errors.NoWorker: Row(_CODE.UNAVAILABLE, "NO_WORKER"),
    errors.BrokerDown: Row(_CODE.UNAVAILABLE, "BROKER_DOWN"),
    errors.DeadlinePassed: Row(_CODE.DEADLINE_EXCEEDED, "DEADLINE_PASSED"),
    errors.DeadlineTooShort: Row(_CODE.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT", _attribute("estimated_wait_ms")),
    errors.PositionAhead: Row(_CODE.OUT_OF_RANGE, "POSITION_AHEAD", _attribute("num_tokens")),
    errors.LogBehind: Row(_CODE.DATA_LOSS, "LOG_BEHIND"),
    errors.Unreadable: Row(_CODE.DATA_LOSS, "UNREADABLE"),
    errors.PoisonJob: Row(_CODE.INTERNAL, "POISON_JOB", _attribute("attempts")),
    errors.GenerationFailed: Row(_CODE.INTERNAL, "GENERATION_FAILED", _attribute("attempt")),
}


_FAULTS = frozenset(
    code.name
    for code in (
        _CODE.UNKNOWN,
        _CODE.DEADLINE_EXCEEDED,
        _CODE.UNIMPLEMENTED,
        _CODE.INTERNAL,
        _CODE.UNAVAILABLE,
        _CODE.DATA_LOSS,
    )
)


def row_of(error: ServeError) -> Row:
    """The row of the error's class."""
    return TABLE[type(error)]


def to_status(error: ServeError) -> RpcStatus:
    """The status that ends an RPC with `error`: ErrorInfo always, more where the error has more."""
    row = row_of(error)
    metadata = {key: _clip(value, MAX_FIELD_BYTES) for key, value in row.metadata(error).items()}
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=row.reason, domain=DOMAIN, metadata=metadata)]
    trailers: list[tuple[str, str | bytes]] = []
    if isinstance(error, errors.InvalidRequest):
        details.append(error_details_pb2.BadRequest(field_violations=_violations(error.violations)))
    if isinstance(error, errors.Unavailable | errors.QuotaExceeded):
        delay_ms = max(0, math.ceil(error.retry_after_s * 1000))
        delay = duration_pb2.Duration(seconds=delay_ms // 1000, nanos=delay_ms % 1000 * 1_000_000)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        trailers.append((PUSHBACK_KEY, str(delay_ms)))
    return _status(row.code, str(error), details, trailers)


def to_rich_status(error: ServeError) -> status_pb2.Status:
    """The same as a message, for an error that ends a turn and not its stream."""
    trailers = dict(to_status(error).trailing_metadata)
    return status_pb2.Status.FromString(trailers[DETAILS_KEY])


def unexpected_status(request_id: str) -> RpcStatus:
    """The status of an error that is no ServeError: it tells nothing but where to look in the log."""
    error_info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"request_id": request_id})
    return _status(_CODE.INTERNAL, f"internal error, request {request_id}", [error_info], [])


def is_fault(code_name: str) -> bool:
    """Whether an RPC that ended so is the service's failure, as OpenTelemetry's RPC conventions count it."""
    return code_name in _FAULTS


async def end(context: grpc.aio.ServicerContext[Any, Any], status: RpcStatus) -> NoReturn:
    """End the RPC with an error's status."""
    await context.abort_with_status(status)
    raise AssertionError("abort_with_status raises")


async def abort_unknown_service(context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
    """The answer of grpc.health.v1 for a service that is not here."""
    await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
    raise AssertionError("abort raises")


def _status(
    code: grpc.StatusCode, text: str, details: Iterable[Message], trailers: list[tuple[str, str | bytes]]
) -> RpcStatus:
    text = _clip(text, MAX_TEXT_BYTES)
    rich = status_pb2.Status(code=code.value[0], message=text)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        rich.details.append(packed)
    return RpcStatus(code, text, (*trailers, (DETAILS_KEY, rich.SerializeToString())))


def _violations(violations: tuple[FieldViolation, ...]) -> list[error_details_pb2.BadRequest.FieldViolation]:
    shown = [
        error_details_pb2.BadRequest.FieldViolation(
            field=_clip(v.field, MAX_FIELD_BYTES), description=_clip(v.description, MAX_DESCRIPTION_BYTES)
        )
        for v in violations[:MAX_VIOLATIONS]
    ]
    if more := len(violations) - len(shown):
        shown[-1].description = f"{shown[-1].description}; and {more} more fields are wrong"
    return shown


def _clip(text: str, max_bytes: int) -> str:
    """The text, its middle left out if it is too long."""
    encoded = text.encode()
    if len(encoded) <= max_bytes:
        return text
    half = (max_bytes - 5) // 2
    return f"{encoded[:half].decode(errors='ignore')} ... {encoded[-half:].decode(errors='ignore')}"
