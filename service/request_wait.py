"""Bounds how long an RPC may be open before its request comes: one that brings none would be held, unseen, for ever.

gRPC calls a handler that takes one message once it is there, and leaves a call that is half-closed without one open.
So each such method is served as one that takes a stream, of which the first message is waited for here.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeAlias

import grpc
import structlog

from contract.errors import DeadlinePassed, FieldViolation, InvalidRequest, ServeError
from service import metrics, status

RawContext = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

log = structlog.get_logger(__name__)


class RequestWait(grpc.aio.ServerInterceptor):
    """For every service of a server.

    Args:
        timeout_s: from the RPC's headers to the end of its request.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._handlers: dict[str, Handler] = {}  # by method, of those that are served

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "Awaitable[Handler | None]"],
        details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """The method's handler, behind the wait for its request."""
        if (handler := self._handlers.get(details.method)) is not None:
            return handler
        handler = await continuation(details)
        if handler is not None:  # a method that is served: names that nobody serves are not kept
            handler = self._handlers[details.method] = self._waiting(handler, details.method.removeprefix("/"))
        return handler

    def _waiting(self, handler: Handler, method: str) -> Handler:
        behavior = handler.unary_stream if handler.response_streaming else handler.unary_unary
        if handler.request_streaming or not inspect.iscoroutinefunction(behavior):
            return handler

        async def serve(requests: object, context: RawContext) -> Any:
            return await behavior(await self._request(context, method), context)

        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return make(serve, handler.request_deserializer, handler.response_serializer)

    async def _request(self, context: RawContext, method: str) -> Any:
        started_s = time.monotonic()
        timeout = asyncio.timeout(self._timeout_s)
        try:
            async with timeout:
                request = await context.read()
        except TimeoutError:
            if not timeout.expired():
                raise
            await _refuse(context, method, DeadlinePassed("before the request came"), started_s)
        if request is grpc.aio.EOF:
            missing = InvalidRequest([FieldViolation("", "is missing: the call ended without a request")])
            await _refuse(context, method, missing, started_s)
        return request


async def _refuse(context: RawContext, method: str, error: ServeError, started_s: float) -> NoReturn:
    """End the RPC, noted as those are that a handler of ours ends."""
    row, duration_s = status.row_of(error), time.monotonic() - started_s
    metrics.note_rpc(method, row.code.name, row.reason, duration_s)
    log.info("rpc ended", method=method, code=row.code.name, reason=row.reason, duration_s=round(duration_s, 4))
    await status.end(context, status.to_status(error))
    raise AssertionError("the RPC has ended")
