"""Whether this process takes another stream: a bound while it serves, none while it drains."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from contract.errors import Draining, Unavailable

RETRY_WHEN_FULL_S = 0.5


class Admission:
    """Counts the RPCs that start or follow generations."""

    def __init__(self, max_streams: int) -> None:
        self._max_streams = max_streams
        self._closed = asyncio.Event()
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
    def enter(self) -> Iterator[None]:
        """Be inside for the length of the block. Raises Draining or Unavailable."""
        if self._closed.is_set():
            raise Draining
        if self._num_inside >= self._max_streams:
            text = f"this gateway has {self._num_inside} streams; {self._max_streams} are allowed"
            raise Unavailable(text, RETRY_WHEN_FULL_S)
        self._num_inside += 1
        self._emptied.clear()
        try:
            yield
        finally:
            self._num_inside -= 1
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
