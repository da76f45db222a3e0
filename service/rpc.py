"""What every RPC has in common: parsing, a span, a log line, a deadline, and errors told as statuses.

Handlers take a parsed message and raise ServeError. Streaming handlers get serialized messages across as they are, so
that tokens are never encoded twice.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from contract import keys
from contract.errors import DeadlinePassed, FieldViolation, InvalidRequest, ServeError
from contract.trace import extract_context
from service import metrics, status
from telemetry import names

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Context], Awaitable[Message | None]]
Answer = TypeVar("Answer")

log = structlog.get_logger(__name__)
tracer = trace.get_tracer("llamaherd.service")


def method_handlers(service: ServiceDescriptor, handlers: Mapping[str, Handler]) -> grpc.GenericRpcHandler:
    """Every method of `service`, by its handler of the same name.

    A unary handler returns its message; a streaming one writes serialized messages to the context.
    """
    assert handlers.keys() == {method.name for method in service.methods}, "each method has a handler"
    return grpc.method_handlers_generic_handler(
        service.full_name, {method.name: _method(method, handlers[method.name]) for method in service.methods}
    )


def _method(method: MethodDescriptor, handler: Handler) -> "grpc.RpcMethodHandler[Any, Any]":
    rpc = _Rpc(method, handler)
    if method.client_streaming and method.server_streaming:
        return grpc.stream_stream_rpc_method_handler(rpc.converse)
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(rpc.stream)
    return grpc.unary_unary_rpc_method_handler(rpc.answer)


class _Rpc:
    """One method: bytes in, bytes out."""

    def __init__(self, method: MethodDescriptor, handler: Handler) -> None:
        assert method.containing_service is not None
        self._name = f"{method.containing_service.full_name}/{method.name}"
        self._request_class = message_factory.GetMessageClass(method.input_type)
        self._handler = handler

    async def answer(self, body: bytes, context: Context) -> bytes:
        """A unary call."""
        answer = await self._run(body, context)
        assert answer is not None, f"{self._name} returned nothing"
        return answer.SerializeToString()

    async def stream(self, body: bytes, context: Context) -> None:
        """A server-streaming call; the handler writes."""
        await self._run(body, context)

    async def converse(self, bodies: AsyncIterator[bytes], context: Context) -> None:
        """A bidirectional call, for as long as both want: it has no span, but what happens on it has, in its trace."""
        with _observed(self._name, context, has_span=False) as outcome:
            await _told(outcome, context, lambda: self._call(self._parse_each(bodies), context))

    async def _run(self, body: bytes, context: Context) -> Message | None:
        def call() -> Awaitable[Message | None]:
            request = self._parse(body)
            outcome.name_request(getattr(request, "request_id", ""))
            return self._call(request, context)

        with _observed(self._name, context) as outcome:
            return await _told(outcome, context, call)

    async def _parse_each(self, bodies: AsyncIterator[bytes]) -> AsyncIterator[Message]:
        async for body in bodies:
            yield self._parse(body)

    def _call(self, request: Message | AsyncIterator[Message], context: Context) -> Awaitable[Message | None]:
        return self._handler(request, context)

    def _parse(self, body: bytes) -> Message:
        try:
            return self._request_class.FromString(body)
        except DecodeError:
            name = self._request_class.DESCRIPTOR.full_name
            raise InvalidRequest([FieldViolation("", f"the bytes are no {name}; strings must be UTF-8")]) from None


def carrier_of(context: Context) -> dict[str, str]:
    """The trace context that the caller sent."""
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


async def _told(outcome: "_Outcome", context: Context, call: Callable[[], Awaitable[Answer]]) -> Answer:
    """The call's result. An error ends the RPC with its status, and is noted."""
    try:
        return await _within_deadline(call(), context)
    except ServeError as error:
        outcome.failed(error)
        await status.abort(context, error)
    except grpc.aio.BaseError:
        raise  # a write failed: the client has gone, there is no one to answer
    except Exception:
        log.exception("rpc failed")
        outcome.broke()
        await status.abort_unexpected(context, outcome.request_id)


async def _within_deadline(call: Awaitable[Answer], context: Context) -> Answer:
    """The call's result. Raises DeadlinePassed when the RPC's own deadline comes first."""
    timeout = asyncio.timeout(context.time_remaining())
    try:
        async with timeout:
            return await call
    except TimeoutError:
        if timeout.expired():
            raise DeadlinePassed("before the answer was complete") from None
        raise


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
    callers = extract_context(carrier_of(context))
    opened = tracer.start_as_current_span(
        method,
        context=callers,
        kind=SpanKind.SERVER,
        attributes={names.ATTR_RPC_SYSTEM: "grpc", names.ATTR_RPC_METHOD: method},
        record_exception=False,
        set_status_on_exception=False,
    )
    with opened if has_span else trace.use_span(trace.get_current_span(callers)) as span:
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
