"""What every RPC has in common: parsing, a span, a log line, a deadline, and errors told as statuses.

Handlers take a parsed message and raise ServeError. Streaming handlers get serialized messages across as they are, so
that tokens are never encoded twice; a unary one may return what it has serialized. A server-streaming handler returns
its last message, as a unary one does its only one: what is returned leaves together with the status, which saves a
client the time of one more write at the end of every stream, and the process its cost.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc
import structlog
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from contract import keys
from contract.errors import FieldViolation, InvalidRequest, ReaderStalled, ServeError, Unreadable
from contract.trace import extract_context
from service import metrics, status
from service.context import Context
from telemetry import names

RawContext = grpc.aio.ServicerContext[Any, Any]
Answer = Message | bytes | None  # serialized already, as bytes; None of a bidirectional call
Handler = Callable[[Any, Context], Awaitable[Answer]]

log = structlog.get_logger(__name__)
tracer = trace.get_tracer("llamaherd.service")


def method_handlers(
    service: ServiceDescriptor, handlers: Mapping[str, Handler], *, write_timeout_s: float
) -> grpc.GenericRpcHandler:
    """Every method of `service`, by its handler of the same name.

    A unary handler returns its message; a server-streaming one returns its last, serialized, and has written the others
    to the context; a bidirectional one writes all.

    Args:
        write_timeout_s: how long a message may wait for its reader.
    """
    assert handlers.keys() == {method.name for method in service.methods}, "each method has a handler"
    return grpc.method_handlers_generic_handler(
        service.full_name,
        {
            method.name: _method(method, _Rpc(method, handlers[method.name], write_timeout_s))
            for method in service.methods
        },
    )


def _method(method: MethodDescriptor, rpc: "_Rpc") -> "grpc.RpcMethodHandler[Any, Any]":
    if method.client_streaming and method.server_streaming:
        return grpc.stream_stream_rpc_method_handler(rpc.converse)
    return grpc.unary_unary_rpc_method_handler(rpc.answer)  # of a stream too: HTTP/2 knows no difference


class _Rpc:
    """One method: bytes in, bytes out."""

    def __init__(self, method: MethodDescriptor, handler: Handler, write_timeout_s: float) -> None:
        assert method.containing_service is not None
        self._name = f"{method.containing_service.full_name}/{method.name}"
        self._request_class = message_factory.GetMessageClass(method.input_type)
        self._handler = handler
        self._write_timeout_s = write_timeout_s

    async def answer(self, body: bytes, raw: RawContext) -> bytes:
        """A call that takes one message: its only answer, or its last."""
        context = Context(raw, self._write_timeout_s)

        def call(outcome: _Outcome) -> Awaitable[Answer]:
            request = self._parse(body)
            outcome.name_request(getattr(request, "request_id", ""))
            return self._handler(request, context)

        answer = await self._told(call, context, raw)
        assert answer is not None, f"{self._name} returned nothing"
        return answer if isinstance(answer, bytes) else answer.SerializeToString()

    async def converse(self, bodies: AsyncIterator[bytes], raw: RawContext) -> None:
        """A bidirectional call, for as long as both want: it has no span, but what happens on it has, in its trace."""
        context = Context(raw, self._write_timeout_s)

        def call(outcome: _Outcome) -> Awaitable[Answer]:
            return self._handler(self._parse_each(bodies), context)

        await self._told(call, context, raw, has_span=False)

    async def _told(
        self,
        call: Callable[["_Outcome"], Awaitable[Answer]],
        context: Context,
        raw: RawContext,
        *,
        has_span: bool = True,
    ) -> Answer:
        """The call's result. An error ends the RPC with its status, and is noted before that.

        A status may have to wait for its reader too: it goes behind the message that could not be written.
        """
        try:
            with _observed(self._name, context, has_span=has_span) as outcome:
                return await _outcome_of(call, context, outcome)
        except _Ends as end:
            await status.end(raw, end.status)

    async def _parse_each(self, bodies: AsyncIterator[bytes]) -> AsyncIterator[Message]:
        async for body in bodies:
            yield self._parse(body)

    def _parse(self, body: bytes) -> Message:
        try:
            return self._request_class.FromString(body)
        except DecodeError:
            name = self._request_class.DESCRIPTOR.full_name
            raise InvalidRequest([FieldViolation("", f"the bytes are no {name}; strings must be UTF-8")]) from None


class _Ends(Exception):
    """The RPC ends with a status that is an error."""

    def __init__(self, status: status.RpcStatus) -> None:
        super().__init__(status.details)
        self.status = status


async def _outcome_of(call: Callable[["_Outcome"], Awaitable[Answer]], context: Context, outcome: "_Outcome") -> Answer:
    """What the call returns. Raises _Ends for every error but that of a write to a client that has gone."""
    try:
        return await context.bounded(call(outcome))
    except ServeError as error:
        outcome.failed(error)
        raise _Ends(status.to_status(error)) from None
    except grpc.aio.BaseError:
        raise  # a write failed: the client has gone, there is no one to answer
    except Exception:
        log.exception("rpc failed")
        outcome.broke()
        raise _Ends(status.unexpected_status(outcome.request_id)) from None


class _Outcome:
    """How the RPC at hand goes, for its span and its log line."""

    def __init__(self, span: Span) -> None:
        self.code = "OK"
        self.reason = ""
        self.request_id = keys.new_id()
        self._span = span

    def name_request(self, request_id: str) -> None:
        """The caller's id goes before ours, clipped: it may yet prove too long."""
        self.request_id = request_id[:128] or self.request_id
        structlog.contextvars.bind_contextvars(request_id=self.request_id)
        self._span.set_attribute(names.ATTR_REQUEST_ID, self.request_id)

    def failed(self, error: ServeError) -> None:
        """It ends with an error of ours."""
        if isinstance(error, ReaderStalled):
            metrics.count_stalled_reader()
        if isinstance(error, Unreadable):
            log.error("what is kept cannot be read", error=str(error), why=error.why)
        row = status.row_of(error)
        self.code, self.reason = row.code.name, row.reason

    def broke(self) -> None:
        """It ends with an error that nobody foresaw."""
        self.code, self.reason = "INTERNAL", "INTERNAL"

    def cancelled(self) -> None:
        """The client has gone."""
        self.code, self.reason = "CANCELLED", "CANCELLED"


@contextmanager
def _observed(method: str, context: Context, *, has_span: bool = True) -> Iterator[_Outcome]:
    """One SERVER span under the caller's, or only the caller's; and one log line at the end."""
    started_s = time.monotonic()
    callers = extract_context(context.carrier)
    span = trace.get_current_span(callers)
    if has_span:
        attributes = {names.ATTR_RPC_SYSTEM: "grpc", names.ATTR_RPC_METHOD: method}
        span = tracer.start_span(method, callers, SpanKind.SERVER, attributes)
    with trace.use_span(span, end_on_exit=has_span, record_exception=False, set_status_on_exception=False):
        outcome = _Outcome(span)
        try:
            yield outcome
        except (asyncio.CancelledError, grpc.aio.BaseError):
            if outcome.code == "OK":
                outcome.cancelled()
            raise
        finally:
            span.set_attribute(names.ATTR_RPC_STATUS, outcome.code)
            if outcome.reason:
                span.set_attribute(names.ATTR_ERROR_TYPE, outcome.reason)
            if status.is_fault(outcome.code):
                span.set_status(Status(StatusCode.ERROR, outcome.reason))
            duration_s = time.monotonic() - started_s
            metrics.note_rpc(method, outcome.code, outcome.reason, duration_s)
            facts = {"method": method, "code": outcome.code, "reason": outcome.reason}
            log.info("rpc ended", **facts, duration_s=round(duration_s, 4))
