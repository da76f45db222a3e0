"""Calls that share a connection: written in the order they come, answered in that order.

redis-py sets it up (address, TLS, password, database) and hands it over. Its own way from a command to its reply costs
several times the CPU time of all the rest of a call, and every token waits for some calls, one after another.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import hiredis
from redis.asyncio.connection import DefaultParser
from redis.exceptions import ConnectionError

MAX_SHORT_BYTES = 64 * 1024  # of a request: what is longer holds up only its like


class Setup(Protocol):
    """A connection of redis-py that can be handed over."""

    async def connect(self) -> None:
        """Be connected, and let in."""
        ...

    async def disconnect(self, nowait: bool = False) -> None:
        """Be closed; with `nowait` at once."""
        ...

    def hand_over(self, to: asyncio.Protocol) -> asyncio.StreamWriter:
        """Let `to` have all that comes; the writer has to be kept for as long as its transport is used."""
        ...


class Lines:
    """All lines of a client: one that short calls share, one for long requests, and one for each call that blocks."""

    def __init__(self, make_setup: Callable[[], Setup]) -> None:
        self._make_setup = make_setup
        self._short, self._long = _Line(make_setup), _Line(make_setup)
        self._apart: list[_Line] = []
        self._idle: list[_Line] = []  # of those apart

    async def call(self, command: Sequence[Any], timeout_s: float, *, blocks: bool) -> Any:
        """The reply, as hiredis reads it. Raises what the server answers, ConnectionError, TimeoutError.

        A call whose connection is lost is made once more on a fresh one: every write is idempotent. One that is
        cancelled may have been carried out, and its reply is nobody else's.

        Args:
            blocks: whether the server may let it wait.
        """
        request = hiredis.pack_command(tuple(command))
        if not blocks:
            return await (self._short if len(request) <= MAX_SHORT_BYTES else self._long).call(request, timeout_s)
        line = self._idle.pop() if self._idle else self._one_more()
        try:
            return await line.call(request, timeout_s)
        except BaseException:
            line.close()  # a read that nobody waits for any more must end at the server too
            raise
        finally:
            self._idle.append(line)

    def close(self) -> None:
        """Lose every connection; a later call opens another."""
        for line in (self._short, self._long, *self._apart):
            line.close()

    def _one_more(self) -> "_Line":
        self._apart.append(_Line(self._make_setup))
        return self._apart[-1]


class _Line:
    """One connection after another, each opened by the call that finds none."""

    def __init__(self, make_setup: Callable[[], Setup]) -> None:
        self._make_setup = make_setup
        self._wire: _Wire | None = None
        self._opening = asyncio.Lock()
        self._num_failed = 0
        self._failure: Exception | None = None  # the last one

    async def call(self, request: bytes, timeout_s: float) -> Any:
        ends_s = asyncio.get_running_loop().time() + timeout_s
        if self._wire is not None and self._wire.is_open:
            try:
                return await self._wire.call(request, ends_s)
            except ConnectionError:
                pass
        async with asyncio.timeout_at(ends_s):
            return await (await self._opened()).call(request, ends_s)

    def close(self) -> None:
        if self._wire is not None:
            self._wire.lose()

    async def _opened(self) -> "_Wire":
        num_failed = self._num_failed
        async with self._opening:
            if self._wire is not None and self._wire.is_open:
                return self._wire
            if self._failure is not None and self._num_failed != num_failed:
                raise self._failure  # while we waited: those that wait together fail together
            setup = self._make_setup()
            try:
                await setup.connect()
            except BaseException as error:
                if isinstance(error, Exception):
                    self._num_failed += 1
                    self._failure = error
                await setup.disconnect(nowait=True)  # waits for nothing
                raise
            self._wire = _Wire(setup)
            return self._wire


class _Wire(asyncio.Protocol):
    """One connection, from when it is handed over until it is lost.

    `_places` has one for each reply that is still to come, in order, whether or not anybody waits for it any more.
    """

    def __init__(self, setup: Setup) -> None:
        self.is_open = True
        self._loop = asyncio.get_running_loop()
        self._replies = hiredis.Reader(protocolError=ConnectionError, replyError=DefaultParser.parse_error)
        self._places: deque[asyncio.Future[Any]] = deque()
        self._writer = setup.hand_over(self)
        self._transport = self._writer.transport

    async def call(self, request: bytes, ends_s: float) -> Any:
        """Write, and wait for the reply: raised if it is an error. At `ends_s` TimeoutError, and the end of it all."""
        place: asyncio.Future[Any] = self._loop.create_future()
        self._places.append(place)
        self._transport.write(request)
        bound = self._loop.call_at(ends_s, self._give_up, place)
        try:
            reply = await place
        finally:
            bound.cancel()
        if isinstance(reply, Exception):
            raise reply
        return reply

    def data_received(self, chunk: bytes) -> None:
        """Give every whole reply to whose turn it is."""
        try:
            self._replies.feed(chunk)
            while (reply := self._replies.gets()) is not False:
                _settle(self._places.popleft(), reply)
        except (ConnectionError, IndexError):  # no reply, or one too many: nothing that follows can be trusted
            self.lose()

    def connection_lost(self, error: Exception | None) -> None:
        """The server, or something on the way, has closed it."""
        self.lose()

    def lose(self) -> None:
        """End the connection, for all that wait too."""
        self.is_open = False
        self._transport.abort()
        while self._places:
            _settle(self._places.popleft(), ConnectionError("the connection was lost"))

    def _give_up(self, place: "asyncio.Future[Any]") -> None:
        """A connection that brings one reply so late is dead for all: the others see on a fresh one."""
        _settle(place, TimeoutError("no reply in time"))
        self.lose()


def _settle(place: "asyncio.Future[Any]", outcome: Any) -> None:
    """An error is set as a result too: asyncio complains of one whose call is cancelled in that moment."""
    if not place.done():
        place.set_result(outcome)
