"""What a handler knows of its RPC, and what bounds its time: the caller's deadline, and a client that reads nothing.

gRPC's write returns once flow control has let the message go. A client that is connected and reads nothing therefore
takes what its window holds (64 KiB, or some MiB where its gRPC widens it), and the write after that waits for ever.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

import grpc

from contract.errors import DeadlinePassed, ReaderStalled

Answer = TypeVar("Answer")


class Context:
    """One RPC.

    Invariant: `_writing_since_s` is when the write under way began, None while none is; there is one at most.

    Args:
        call: gRPC's own context of it.
        write_timeout_s: how long a message may wait for its reader.
    """

    def __init__(self, call: grpc.aio.ServicerContext[Any, Any], write_timeout_s: float) -> None:
        self._call = call
        self._write_timeout_s = write_timeout_s
        self._timeout = asyncio.timeout(call.time_remaining())
        self._writing_since_s: float | None = None
        self._look: asyncio.TimerHandle | None = None  # at a write that may have waited too long
        self._is_stalled = False

    @property
    def carrier(self) -> dict[str, str]:
        """The trace context that the caller sent."""
        return {key: value for key, value in self._call.invocation_metadata() or () if isinstance(value, str)}

    def time_remaining(self) -> float | None:
        """Seconds to the caller's deadline."""
        return self._call.time_remaining()

    async def write(self, body: bytes) -> None:
        """Send a serialized message. A reader that takes none ends what runs in `bounded`."""
        loop = asyncio.get_running_loop()
        self._writing_since_s = loop.time()
        if self._look is None:  # one timer in write_timeout_s: one for each message would cost a tenth of its write
            self._look_later(loop, self._writing_since_s + self._write_timeout_s)
        try:
            await self._call.write(body)
        finally:
            self._writing_since_s = None

    async def bounded(self, work: Awaitable[Answer]) -> Answer:
        """What the work returns. Raises DeadlinePassed when the RPC's own deadline comes first, ReaderStalled."""
        try:
            async with self._timeout:
                return await work
        except TimeoutError:
            if not self._timeout.expired():
                raise
            if self._is_stalled:
                raise ReaderStalled(self._write_timeout_s) from None
            raise DeadlinePassed("before the answer was complete") from None
        finally:
            if self._look is not None:
                self._look.cancel()

    def _look_later(self, loop: asyncio.AbstractEventLoop, due_s: float) -> None:
        self._look = loop.call_at(due_s, self._look_at_write, loop, due_s)

    def _look_at_write(self, loop: asyncio.AbstractEventLoop, due_s: float) -> None:
        """End the work if the write under way has waited too long; look again when it will have."""
        self._look = None
        if self._writing_since_s is None:
            return  # the next write sets the timer
        now_s = loop.time()
        if now_s > due_s + self._write_timeout_s / 4:
            self._writing_since_s = now_s  # this process has slept, and may not yet know that it was written
        if (next_s := self._writing_since_s + self._write_timeout_s) > now_s:
            self._look_later(loop, next_s)
        elif not self._timeout.expired():
            self._is_stalled = True
            self._timeout.reschedule(now_s)
