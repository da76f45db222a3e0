"""The client for asyncio. What it decides, `resume.py` and `tries.py` decide; here is the I/O."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, Self, TypeVar

import grpc

from llamaherd.client import calls
from llamaherd.client.calls import StreamCall, UnaryCall, serialize
from llamaherd.client.connection import DEFAULT_ADDRESS, Connections, Metadata, Tls, connections
from llamaherd.client.deltas import Delta, StreamFacts, deltas_of
from llamaherd.client.errors import HerdError, closed, typed
from llamaherd.client.methods import Methods
from llamaherd.client.resume import Response
from llamaherd.client.trace import trace_metadata
from llamaherd.client.tries import Targets, Tries

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


class AsyncClient(Methods):
    """As `Client`, for one event loop: that of its first call. Arguments as for `Client`."""

    def __init__(
        self,
        addresses: str | Sequence[str] = DEFAULT_ADDRESS,
        *,
        tls: Tls | bool = False,
        api_key: str | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        timeout_s: float | None = None,
        patience_s: float = 60.0,
        channel_options: Sequence[tuple[str, int | str]] = (),
    ) -> None:
        self._reach = connections(addresses, tls, api_key, metadata, channel_options)
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._targets = Targets(len(self._reach.addresses))
        self._channels: list[grpc.aio.Channel] = []  # made by the first call: each belongs to the loop that runs then
        self._last_words: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def close(self) -> None:
        """Wait until streams that were left are cancelled; then end every connection, and what still runs over it."""
        if self._last_words:
            await asyncio.wait(self._last_words)
        self._is_closed = True
        for channel in self._channels:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def answer(self, call: UnaryCall[Answer]) -> Answer:
        """Make a call, again where that is right. Raises HerdError."""
        tries = self.tries(call.timeout_s)
        metadata = self.metadata()
        while True:
            method = self.channel(tries).unary_unary(call.path, serialize, call.parse)
            try:
                return await method(call.request, timeout=tries.remaining_s(), metadata=metadata)
            except grpc.aio.AioRpcError as error:
                await asyncio.sleep(tries.failed(typed(error)))

    def stream(self, call: StreamCall) -> "AsyncStream":
        """The stream of a generation, not yet begun."""
        return AsyncStream(self, call)

    def tries(self, timeout_s: float | None) -> Tries:
        """The attempts at a call that begins now."""
        return Tries(self._targets, self._timeout_s if timeout_s is None else timeout_s, self._patience_s)

    def channel(self, tries: Tries) -> grpc.aio.Channel:
        """Where the next attempt goes. Raises Cancelled once the client is closed."""
        if self._is_closed:
            raise closed()
        if not self._channels:
            self._channels = [_channel(self._reach, address) for address in self._reach.addresses]
        return self._channels[tries.next_target()]

    def metadata(self) -> Metadata:
        """What goes with a call that the current span makes."""
        return (*self._reach.metadata, *trace_metadata())

    def finish_later(self, last_words: Coroutine[Any, Any, None]) -> None:
        """Run what a reader that was cancelled cannot await; `close` waits for it."""
        task = asyncio.get_running_loop().create_task(last_words)
        self._last_words.add(task)
        task.add_done_callback(self._last_words.discard)


class AsyncStream(StreamFacts):
    """As `Stream`: an asynchronous iterable, and an asynchronous context manager.

    A `break` out of `async for` is told to the service in the background; with `async with`, or `close`, it is told
    when the block is left.
    """

    def __init__(self, client: AsyncClient, call: StreamCall) -> None:
        super().__init__(call.reading)
        self._client = client
        self._tries = client.tries(call.timeout_s)
        self._metadata = client.metadata()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        async with aclosing(self.messages()) as messages:
            async for message in messages:
                for delta in deltas_of(message):
                    yield delta

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def messages(self) -> AsyncGenerator[Response, None]:
        """The service's own messages instead of deltas, each once: `accepted` first, `completed` last."""
        try:
            while self._reading.goes_on:
                async with aclosing(self._attempt()) as attempt:
                    async for message in attempt:
                        yield message
        except HerdError:
            self._reading.leave()
            raise
        except BaseException:  # the reader has left, by `break` or by being cancelled: an await may not come back
            self._client.finish_later(self.close())
            raise

    async def close(self) -> None:
        """Leave; returns once the service knows, within a few seconds at most."""
        if not self._reading.leave():
            return
        try:
            generation_id = self.generation_id or (await self._client.answer(calls.find(self._reading))).generation_id
            await self._client.answer(calls.cancel(generation_id, timeout_s=calls.CANCEL_TIMEOUT_S))
        except HerdError as error:
            log.warning("generation was not cancelled, and ends by its resume window: %s", error)

    async def _attempt(self) -> AsyncGenerator[Response, None]:
        """Go on by one call, as far as it comes; then wait, if there is to be another. Raises HerdError if not."""
        path, request = self._reading.next_call()
        method = self._client.channel(self._tries).unary_stream(path, serialize, Response.FromString)
        rpc = method(request, timeout=self._tries.remaining_s(), metadata=self._metadata)
        try:
            async for message in rpc:
                for fresh in self._reading.take(message):
                    self._tries.progressed()
                    yield fresh
            self._reading.ended()
        except (grpc.aio.AioRpcError, HerdError) as error:
            if not self._reading.is_complete:
                await asyncio.sleep(self._tries.failed(self._reading.failed(typed(error))))
        finally:
            rpc.cancel()


def _channel(reach: Connections, address: str) -> grpc.aio.Channel:
    if reach.credentials is None:
        return grpc.aio.insecure_channel(address, reach.options)
    return grpc.aio.secure_channel(address, reach.credentials, reach.options)
