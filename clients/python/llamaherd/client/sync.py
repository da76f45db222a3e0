"""The client for threads. What it decides, `resume.py` and `tries.py` decide; here is the I/O."""

import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from typing import Self, TypeVar

import grpc

from llamaherd.client.calls import (
    FAREWELL_TIMEOUT_S,
    Farewell,
    StreamCall,
    UnaryCall,
    ends_what_it_started,
    serialize,
)
from llamaherd.client.chat import ChatCall, ChatFacts, Conversation, answered
from llamaherd.client.connection import DEFAULT_ADDRESS, Connections, Metadata, Tls, connections
from llamaherd.client.deltas import Delta, StreamFacts, deltas_of
from llamaherd.client.errors import HerdError, NotFound, closed, typed
from llamaherd.client.methods import Methods
from llamaherd.client.resume import Response, StreamRequest
from llamaherd.client.trace import trace_metadata
from llamaherd.client.tries import Targets, Tries

Answer = TypeVar("Answer")

MAX_FAREWELLS = 8  # said at the same time
CLOSE_S = 2 * FAREWELL_TIMEOUT_S  # how long the client's end waits for them

log = logging.getLogger(__name__)


class Client(Methods):
    """Speaks to one or more gateways of a herd; may be shared by threads, and connects when first used.

    gRPC's connections do not survive a fork: a child has to make a client of its own, unless this one is unused.

    Args:
        addresses: `host:port` of a gateway, or several. A name that stands for several gateways (`dns:///herd:50051`)
            is used by turns.
        tls: True for the system's root certificates, a Tls for others; False speaks plain text.
        api_key: sent with every call as `authorization: Bearer ...`.
        metadata: sent with every call too.
        timeout_s: of calls that are given none; None has no deadline.
        patience_s: how long a call goes on trying while nothing comes of it.
        channel_options: gRPC's, before ours (`connection.py`).
    """

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
        self._channels: list[grpc.Channel] = []
        self._pid = os.getpid()  # of the process that has them
        self._lock = threading.RLock()  # of all below; a collected generator may come back to it
        self._streams: set[Stream] = set()  # that are being read
        self._awaited: dict[object, Callable[[], Farewell]] = {}  # answers, and what ends that which they are of
        self._farewells: set[Future[None]] = set()
        self._speakers: ThreadPoolExecutor | None = None
        self._is_closed = False

    def close(self) -> None:
        """Leave every stream, and what else is awaited, and end every connection; what was started and still runs ends.

        Returns once the service knows, within 6 s at most.
        """
        if self._is_another_process():
            self._is_closed = True
            return
        with self._lock:
            streams, awaited = list(self._streams), list(self._awaited)
        for stream in streams:
            stream.cut()
        for this in awaited:
            self._end_awaited(this)
        with self._lock:
            farewells, speakers = set(self._farewells), self._speakers
        wait(farewells, CLOSE_S)
        self._is_closed = True
        if speakers is not None:
            speakers.shutdown(wait=False, cancel_futures=True)
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def answer(self, call: UnaryCall[Answer]) -> Answer:
        """Make a call, again where that is right. Raises HerdError."""
        if call.farewell is None:
            return self._answer(call)
        this = object()
        with self._lock:
            self._awaited[this] = call.farewell
        try:
            return self._answer(call)
        except BaseException as error:
            if ends_what_it_started(error):
                self._end_awaited(this)
            raise
        finally:
            with self._lock:
                self._awaited.pop(this, None)

    def _answer(self, call: UnaryCall[Answer]) -> Answer:
        def ask(channel: grpc.Channel, timeout_s: float | None, metadata: Metadata) -> Answer:
            method = channel.unary_unary(call.path, serialize, call.parse)
            return method(call.request, timeout=timeout_s, metadata=metadata)

        return self._until_answered(ask, self.tries(call.timeout_s))

    def converse(self, call: ChatCall[Answer]) -> Answer:
        """Say all of a chat's messages; the answer to the first. Raises HerdError."""

        def ask(channel: grpc.Channel, timeout_s: float | None, metadata: Metadata) -> Answer:
            rpc = channel.stream_stream(call.path, serialize, call.parse)(
                iter(call.requests), timeout=timeout_s, metadata=metadata
            )
            try:
                answer = next(rpc, None)
                if len(call.requests) > 1:
                    for _ in rpc:  # its end says that all of them were taken
                        pass
            finally:
                rpc.cancel()
            return answered(answer)

        return self._until_answered(ask, self.tries(None))

    def stream(self, call: StreamCall) -> "Stream":
        """The stream of a generation, not yet begun."""
        return Stream(self, call)

    def conversation(self, conversation: Conversation) -> "Chat":
        """A conversation, not yet opened."""
        return Chat(self, conversation)

    def tries(self, timeout_s: float | None) -> Tries:
        """The attempts at a call that begins now."""
        return Tries(self._targets, self._timeout_s if timeout_s is None else timeout_s, self._patience_s)

    def channel(self, tries: Tries) -> grpc.Channel:
        """Where the next attempt goes. Raises Cancelled once the client is closed, RuntimeError after a fork."""
        with self._lock:
            if self._is_closed:
                raise closed()
            if not self._channels:
                self._channels = [_channel(self._reach, address) for address in self._reach.addresses]
                self._pid = os.getpid()
        if self._is_another_process():
            raise RuntimeError(f"this client's connections belong to process {self._pid}: make a client after the fork")
        return self._channels[tries.next_target()]

    def _is_another_process(self) -> bool:
        return bool(self._channels) and self._pid != os.getpid()

    def metadata(self) -> Metadata:
        """What goes with a call that the current span makes."""
        return (*self._reach.metadata, *trace_metadata())

    def begin(self, stream: "Stream") -> None:
        """It is being read from now on: `close` leaves it."""
        with self._lock:
            self._streams.add(stream)

    def ended(self, stream: "Stream") -> None:
        """Nobody reads it any more."""
        with self._lock:
            self._streams.discard(stream)

    def begin_farewell(self, farewell: Farewell) -> None:
        """Say it while the caller goes on; `close` waits for it."""
        with self._lock:
            if self._is_closed:
                return
            if self._speakers is None:
                self._speakers = ThreadPoolExecutor(MAX_FAREWELLS, "llamaherd-farewell")
            said = self._speakers.submit(self.say, farewell)
            self._farewells.add(said)
        said.add_done_callback(self._said)

    def say(self, farewell: Farewell) -> None:
        """Say it; returns once the service knows, or does not answer."""
        answer = None
        try:
            while True:
                answer = self._answer(farewell.send(answer))
        except (StopIteration, NotFound):
            pass
        except HerdError as error:
            log.warning("what was left could not be ended, and ends by its resume window: %s", error)

    def _end_awaited(self, this: object) -> None:
        with self._lock:
            farewell = self._awaited.pop(this, None)
        if farewell is not None:
            self.begin_farewell(farewell())

    def _said(self, farewell: "Future[None]") -> None:
        with self._lock:
            self._farewells.discard(farewell)

    def _until_answered(self, ask: Callable[[grpc.Channel, float | None, Metadata], Answer], tries: Tries) -> Answer:
        metadata = self.metadata()
        while True:
            try:
                return ask(self.channel(tries), tries.remaining_s(), metadata)
            except (grpc.RpcError, HerdError) as error:
                time.sleep(tries.failed(typed(error)))


class Stream(StreamFacts):
    """The deltas of one generation: an iterable for one reader, unbroken over lost connections and gateways.

    Leaving the iteration early, or the block of a `with`, ends the stream; the generation is then cancelled if this
    stream has started it, and so it is when `timeout_s` is over, or too near for another attempt, unless the call was
    given a request_id or a resume_window_ms. After another error it is left as it is, for others to `attach`.
    """

    def __init__(self, client: Client, call: StreamCall, after: "Stream | None" = None) -> None:
        super().__init__(call.reading)
        self._after = after  # of a conversation: the turn before, which has to be ended first
        self._client = client
        self._call = call
        self._is_cut = False  # by its client's end
        self._tries = client.tries(call.timeout_s)
        self._metadata = client.metadata()

    def __iter__(self) -> Iterator[Delta]:
        with closing(self.messages()) as messages:
            for message in messages:
                yield from deltas_of(message)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def messages(self) -> Generator[Response, None, None]:
        """The service's own messages instead of deltas, each once: `accepted` first, `completed` last."""
        self._client.begin(self)
        try:
            if self._after is not None:
                self._after.close()
            while self._reading.goes_on:
                yield from self._attempt()
            if self._is_cut and not self._reading.is_complete:
                raise closed()
        except HerdError as error:
            if self._call.ends(error, self._tries):
                self._begin_farewell()  # in the background: the deadline is over
            self._reading.leave()
            raise
        except BaseException:  # the reader has left, by `break` or an interrupt
            self.close()
            raise
        finally:
            self._client.ended(self)

    def close(self) -> None:
        """Leave; returns once the service knows, within a few seconds at most."""
        if self._reading.leave():
            self._client.say(self._call.farewell(self._reading))

    def cut(self) -> None:
        """Leave, because the client ends: whoever reads in another thread is told so."""
        self._is_cut = True
        self._begin_farewell()

    def _begin_farewell(self) -> None:
        if self._reading.leave():
            self._client.begin_farewell(self._call.farewell(self._reading))

    def _attempt(self) -> Generator[Response, None, None]:
        """Go on by one call, as far as it comes; then wait, if there is to be another. Raises HerdError if not."""
        path, request = self._reading.next_call()
        channel = self._client.channel(self._tries)
        method: grpc.UnaryStreamMultiCallable[StreamRequest, bytes] = channel.unary_stream(path, serialize)
        rpc = method(request, timeout=self._tries.remaining_s(), metadata=self._metadata)
        try:
            for body in rpc:
                for fresh in self._reading.read(body):
                    self._tries.progressed()
                    yield fresh
            self._reading.ended()
        except (grpc.RpcError, HerdError) as error:
            if not self._reading.is_complete:
                time.sleep(self._tries.failed(self._reading.failed(typed(error))))
        finally:
            rpc.cancel()


class Chat(ChatFacts):
    """A conversation; see `Client.chat`. Used by one thread, but for `interrupt`."""

    def __init__(self, client: Client, conversation: Conversation) -> None:
        super().__init__(conversation)
        self._client = client
        self._turn: Stream | None = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Begin the conversation, or go on with that of the handle."""
        self._conversation.opened(self._client.converse(self._conversation.opening()))

    def close(self) -> None:
        """Interrupt the running turn, if there is one. The conversation is kept."""
        if self._turn is not None:
            self._turn.close()

    def send(self, content: str, *, request_id: str | None = None, timeout_s: float | None = None) -> Stream:
        """Say something; the answer is a stream like `generate`'s. Breaking out of it interrupts the answer, and the
        history keeps the text that was read."""
        call = self._conversation.sending(content, request_id, timeout_s)
        self._turn = Stream(self._client, call, self._turn)
        return self._turn

    def interrupt(self, num_tokens_shown: int | None = None, *, timeout_s: float | None = None) -> bool:
        """End the answer that runs now; its stream then ends too. Whether there was one.

        Args:
            num_tokens_shown: the history keeps the text up to there; default: all that was made.
        """
        return self._client.answer(self._conversation.interrupting(num_tokens_shown, timeout_s))

    def end(self) -> None:
        """End the conversation for good; the service deletes what was said."""
        self.close()
        self._client.converse(self._conversation.ending())


def _channel(reach: Connections, address: str) -> grpc.Channel:
    if reach.credentials is None:
        return grpc.insecure_channel(address, reach.options)
    return grpc.secure_channel(address, reach.credentials, reach.options)
