"""Whether this process takes another stream: a bound while it serves, none while it drains."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from contract.errors import Draining, Unavailable
from service.pace import Pace, Pushback


class Admission:
    """Counts the RPCs that start or follow generations."""

    def __init__(self, max_streams: int) -> None:
        self._max_streams = max_streams
        self._closed = asyncio.Event()
        self._pace = Pace()  # at which RPCs leave
        self._last_s = 0.0  # when one last left, or the first came in
        self._pushback = Pushback()
        self._num_inside = 0
        self._emptied = asyncio.Event()
        self._emptied.set()

    @property
    def num_inside(self) -> int:
        """RPCs inside now."""
        return self._num_inside

    @property
    def is_open(self) -> bool:
        """Whether anybody is let in."""
        return not self._closed.is_set()

    @contextmanager
    def enter(self, *, has_place: bool = False) -> Iterator[None]:
        """Be inside for the length of the block. Raises Draining or Unavailable.

        Args:
            has_place: the RPC is inside already, and begins something more.
        """
        if self._closed.is_set():
            raise Draining
        if has_place:
            yield
            return
        if self._num_inside >= self._max_streams:
            text = f"this gateway has {self._num_inside} streams; {self._max_streams} are allowed"
            raise Unavailable(text, self._pushback.take(self._pace.per_s, time.monotonic()))
        if not self._num_inside:
            self._last_s = time.monotonic()
        self._num_inside += 1
        self._emptied.clear()
        try:
            yield
        finally:
            self._num_inside -= 1
            now_s = time.monotonic()
            self._pace.note(1, now_s - self._last_s)
            self._last_s = now_s
            if not self._num_inside:
                self._emptied.set()

    def close(self) -> None:
        """Let nobody in any more."""
        self._closed.set()

    async def closed(self) -> None:
        """Wait until nobody is let in any more."""
        await self._closed.wait()

    async def emptied(self) -> None:
        """Wait until nobody is inside."""
        await self._emptied.wait()
