"""The client for asyncio. What it decides, `resume.py` and `tries.py` decide; here is the I/O."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Self, TypeVar

import grpc

from llamaherd.client.calls import Farewell, StreamCall, UnaryCall, ends_what_it_started, serialize
from llamaherd.client.chat import ChatCall, ChatFacts, Conversation, answered
from llamaherd.client.connection import DEFAULT_ADDRESS, Connections, Metadata, Tls, connections
from llamaherd.client.deltas import Delta, StreamFacts, deltas_of
from llamaherd.client.errors import HerdError, NotFound, closed, typed
from llamaherd.client.methods import Methods
from llamaherd.client.resume import Response, StreamRequest
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
        self._streams: set[AsyncStream] = set()  # that are being read
        self._awaited: dict[object, Callable[[], Farewell]] = {}  # answers, and what ends that which they are of
        self._last_words: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def close(self) -> None:
        """As `Client.close`."""
        for stream in list(self._streams):
            stream.cut()
        for this in list(self._awaited):
            self._end_awaited(this)
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
        this = object()
        if call.farewell is not None:
            self._awaited[this] = call.farewell
        try:
            return await self._answer(call)
        except asyncio.CancelledError:
            if self._is_closed and not _is_cancelled():
                raise closed() from None  # the client's end has cancelled the call alone
            self._end_awaited(this)
            raise
        except BaseException as error:
            if ends_what_it_started(error):
                self._end_awaited(this)
            raise
        finally:
            self._awaited.pop(this, None)

    async def _answer(self, call: UnaryCall[Answer]) -> Answer:
        async def ask(channel: grpc.aio.Channel, timeout_s: float | None, metadata: Metadata) -> Answer:
            method = channel.unary_unary(call.path, serialize, call.parse)
            return await method(call.request, timeout=timeout_s, metadata=metadata)

        return await self._until_answered(ask, self.tries(call.timeout_s))

    async def converse(self, call: ChatCall[Answer]) -> Answer:
        """Say all of a chat's messages; the answer to the first. Raises HerdError."""

        async def ask(channel: grpc.aio.Channel, timeout_s: float | None, metadata: Metadata) -> Answer:
            rpc = channel.stream_stream(call.path, serialize, call.parse)(
                iter(call.requests), timeout=timeout_s, metadata=metadata
            )
            try:
                answer = await anext(aiter(rpc), None)
                if len(call.requests) > 1:
                    async for _ in rpc:  # its end says that all of them were taken
                        pass
            finally:
                rpc.cancel()
            return answered(answer)

        return await self._until_answered(ask, self.tries(None))

    def stream(self, call: StreamCall) -> "AsyncStream":
        """The stream of a generation, not yet begun."""
        return AsyncStream(self, call)

    def conversation(self, conversation: Conversation) -> "AsyncChat":
        """A conversation, not yet opened."""
        return AsyncChat(self, conversation)

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

    def begin(self, stream: "AsyncStream") -> None:
        """It is being read from now on: `close` leaves it."""
        self._streams.add(stream)

    def ended(self, stream: "AsyncStream") -> None:
        """Nobody reads it any more."""
        self._streams.discard(stream)

    def begin_farewell(self, farewell: Farewell) -> "asyncio.Task[None]":
        """Say what a caller that was cancelled cannot await; `close` waits for it."""
        task = asyncio.get_running_loop().create_task(self._say(farewell))
        self._last_words.add(task)
        task.add_done_callback(self._last_words.discard)
        return task

    def _end_awaited(self, this: object) -> None:
        farewell = self._awaited.pop(this, None)
        if farewell is not None:
            self.begin_farewell(farewell())

    async def _say(self, farewell: Farewell) -> None:
        answer = None
        try:
            while True:
                answer = await self._answer(farewell.send(answer))
        except (StopIteration, NotFound):
            pass
        except HerdError as error:
            log.warning("what was left could not be ended, and ends by its resume window: %s", error)

    async def _until_answered(
        self, ask: Callable[[grpc.aio.Channel, float | None, Metadata], Awaitable[Answer]], tries: Tries
    ) -> Answer:
        metadata = self.metadata()
        while True:
            try:
                return await ask(self.channel(tries), tries.remaining_s(), metadata)
            except (grpc.aio.AioRpcError, HerdError) as error:
                await asyncio.sleep(tries.failed(typed(error)))


class AsyncStream(StreamFacts):
    """As `Stream`: an asynchronous iterable, and an asynchronous context manager.

    A `break` out of `async for` is told to the service in the background; with `async with`, or `close`, it is told
    when the block is left.
    """

    def __init__(self, client: AsyncClient, call: StreamCall, after: "AsyncStream | None" = None) -> None:
        super().__init__(call.reading)
        self._after = after  # of a conversation: the turn before, which has to be ended first
        self._client = client
        self._call = call
        self._farewell: asyncio.Task[None] | None = None
        self._is_cut = False  # by its client's end
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
        self._client.begin(self)
        try:
            if self._after is not None:
                await self._after.close()
            while self._reading.goes_on:
                async with aclosing(self._attempt()) as attempt:
                    async for message in attempt:
                        yield message
            if self._is_cut and not self._reading.is_complete:
                raise closed()
        except BaseException as error:  # a reader that has left, or was cancelled: an await may not come back
            if self._call.ends(error, self._tries):
                self._begin_farewell()
            self._reading.leave()
            raise
        finally:
            self._client.ended(self)

    async def close(self) -> None:
        """Leave; returns once the service knows, within a few seconds at most."""
        self._begin_farewell()
        if self._farewell is not None:
            await asyncio.shield(self._farewell)

    def cut(self) -> None:
        """Leave, because the client ends: whoever reads in another task is told so."""
        self._is_cut = True
        self._begin_farewell()

    def _begin_farewell(self) -> None:
        """Never waits: the client runs what is to be said, and its end waits for it."""
        if self._reading.leave():
            self._farewell = self._client.begin_farewell(self._call.farewell(self._reading))

    async def _attempt(self) -> AsyncGenerator[Response, None]:
        """Go on by one call, as far as it comes; then wait, if there is to be another. Raises HerdError if not."""
        path, request = self._reading.next_call()
        channel = self._client.channel(self._tries)
        method: grpc.aio.UnaryStreamMultiCallable[StreamRequest, bytes] = channel.unary_stream(path, serialize)
        rpc = method(request, timeout=self._tries.remaining_s(), metadata=self._metadata)
        try:
            async for body in rpc:
                for fresh in self._reading.read(body):
                    self._tries.progressed()
                    yield fresh
            self._reading.ended()
        except (grpc.aio.AioRpcError, HerdError) as error:
            if not self._reading.is_complete:
                await asyncio.sleep(self._tries.failed(self._reading.failed(typed(error))))
        except asyncio.CancelledError:
            if not self._is_cut or _is_cancelled():
                raise  # the reader's task; else the client's end has cancelled the call alone
        finally:
            rpc.cancel()


class AsyncChat(ChatFacts):
    """As `Chat`, an asynchronous context manager; used by one task, but for `interrupt`."""

    def __init__(self, client: AsyncClient, conversation: Conversation) -> None:
        super().__init__(conversation)
        self._client = client
        self._turn: AsyncStream | None = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Begin the conversation, or go on with that of the handle."""
        self._conversation.opened(await self._client.converse(self._conversation.opening()))

    async def close(self) -> None:
        """Interrupt the running turn, if there is one. The conversation is kept."""
        if self._turn is not None:
            await self._turn.close()

    def send(self, content: str, *, request_id: str | None = None, timeout_s: float | None = None) -> AsyncStream:
        """As `Chat.send`."""
        call = self._conversation.sending(content, request_id, timeout_s)
        self._turn = AsyncStream(self._client, call, self._turn)
        return self._turn

    async def interrupt(self, num_tokens_shown: int | None = None, *, timeout_s: float | None = None) -> bool:
        """As `Chat.interrupt`."""
        return await self._client.answer(self._conversation.interrupting(num_tokens_shown, timeout_s))

    async def end(self) -> None:
        """End the conversation for good; the service deletes what was said."""
        await self.close()
        await self._client.converse(self._conversation.ending())


def _is_cancelled() -> bool:
    """Whether the running task is, and not only a call that it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _channel(reach: Connections, address: str) -> grpc.aio.Channel:
    if reach.credentials is None:
        return grpc.aio.insecure_channel(address, reach.options)
    return grpc.aio.secure_channel(address, reach.credentials, reach.options)
