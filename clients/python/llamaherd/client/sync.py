"""The client for threads. What it decides, `resume.py` and `tries.py` decide; here is the I/O."""

import logging
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Self, TypeVar

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


class Client(Methods):
    """Speaks to one or more gateways of a herd; may be shared by threads.

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
        reach = connections(addresses, tls, api_key, metadata, channel_options)
        self._metadata = reach.metadata
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._targets = Targets(len(reach.addresses))
        self._channels = [_channel(reach, address) for address in reach.addresses]
        self._is_closed = False

    def close(self) -> None:
        """End every connection, and what still runs over it."""
        self._is_closed = True
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def answer(self, call: UnaryCall[Answer]) -> Answer:
        """Make a call, again where that is right. Raises HerdError."""
        tries = self.tries(call.timeout_s)
        metadata = self.metadata()
        while True:
            channel = self.channel(tries)
            method = channel.unary_unary(call.path, serialize, call.parse)
            try:
                return method(call.request, timeout=tries.remaining_s(), metadata=metadata)
            except grpc.RpcError as error:
                time.sleep(tries.failed(typed(error)))

    def stream(self, call: StreamCall) -> "Stream":
        """The stream of a generation, not yet begun."""
        return Stream(self, call)

    def tries(self, timeout_s: float | None) -> Tries:
        """The attempts at a call that begins now."""
        return Tries(self._targets, self._timeout_s if timeout_s is None else timeout_s, self._patience_s)

    def channel(self, tries: Tries) -> grpc.Channel:
        """Where the next attempt goes. Raises Cancelled once the client is closed."""
        if self._is_closed:
            raise closed()
        return self._channels[tries.next_target()]

    def metadata(self) -> Metadata:
        """What goes with a call that the current span makes."""
        return (*self._metadata, *trace_metadata())


class Stream(StreamFacts):
    """The deltas of one generation: an iterable for one reader, unbroken over lost connections and gateways.

    Leaving the iteration early, or the block of a `with`, ends the stream; the generation is then cancelled if this
    stream has started it. After an error it is left as it is, for another to `attach`.
    """

    def __init__(self, client: Client, call: StreamCall) -> None:
        super().__init__(call.reading)
        self._client = client
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
        try:
            while self._reading.goes_on:
                yield from self._attempt()
        except HerdError:
            self._reading.leave()
            raise
        except BaseException:  # the reader has left, by `break` or an interrupt
            self.close()
            raise

    def close(self) -> None:
        """Leave; returns once the service knows, within a few seconds at most."""
        if not self._reading.leave():
            return
        try:
            generation_id = self.generation_id or self._client.answer(calls.find(self._reading)).generation_id
            self._client.answer(calls.cancel(generation_id, timeout_s=calls.CANCEL_TIMEOUT_S))
        except HerdError as error:
            log.warning("generation was not cancelled, and ends by its resume window: %s", error)

    def _attempt(self) -> Generator[Response, None, None]:
        """Go on by one call, as far as it comes; then wait, if there is to be another. Raises HerdError if not."""
        path, request = self._reading.next_call()
        method = self._client.channel(self._tries).unary_stream(path, serialize, Response.FromString)
        rpc = method(request, timeout=self._tries.remaining_s(), metadata=self._metadata)
        try:
            for message in rpc:
                for fresh in self._reading.take(message):
                    self._tries.progressed()
                    yield fresh
            self._reading.ended()
        except (grpc.RpcError, HerdError) as error:
            if not self._reading.is_complete:
                time.sleep(self._tries.failed(self._reading.failed(typed(error))))
        finally:
            rpc.cancel()


def _channel(reach: Connections, address: str) -> grpc.Channel:
    if reach.credentials is None:
        return grpc.insecure_channel(address, reach.options)
    return grpc.secure_channel(address, reach.credentials, reach.options)
