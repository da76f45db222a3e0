"""Tells Redis that this gateway no longer reads a generation, after the RPC that read it has ended in whatever way.

The clean-up of a cancelled RPC may not await: the first await would itself be cancelled. So it hands over here.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from contract.broker import Broker
from contract.errors import UnknownGeneration, Unreadable
from service.backoff import until_answered

NUM_WORKERS = 8  # leaves under way at the same time


@dataclass(frozen=True, slots=True)
class Leaving:
    """A generation to leave, after `submission`, which may yet make us its reader."""

    generation_id: str
    caller: str
    submission: asyncio.Future[Any]


class Leaver:
    """A queue of generations to leave and the tasks that do it.

    Args:
        is_read: whether another stream of this process reads the generation; then it is not left.
    """

    def __init__(self, broker: Broker, gateway_id: str, is_read: Callable[[str], bool]) -> None:
        self._broker = broker
        self._gateway_id = gateway_id
        self._is_read = is_read
        self._queue: asyncio.Queue[Leaving] = asyncio.Queue()

    def put_nowait(self, generation_id: str, caller: str, submission: asyncio.Future[Any]) -> None:
        """Leave soon. Never waits."""
        self._queue.put_nowait(Leaving(generation_id, caller, submission))

    async def run(self) -> None:
        """Leave what is handed over, for ever."""
        async with asyncio.TaskGroup() as group:
            for _ in range(NUM_WORKERS):
                group.create_task(self._leave_all())

    async def flush(self) -> None:
        """Wait until all that was handed over is left."""
        await self._queue.join()

    async def _leave_all(self) -> None:
        while True:
            leaving = await self._queue.get()
            await self._leave(leaving)
            self._queue.task_done()

    async def _leave(self, leaving: Leaving) -> None:
        generation_id = leaving.generation_id
        await asyncio.wait([leaving.submission])
        if self._is_read(generation_id):
            return
        await until_answered(lambda: self._broker.leave(generation_id, gateway_id=self._gateway_id))
        if self._is_read(generation_id):  # a stream was opened meanwhile, and its attach may have come first
            try:
                await until_answered(
                    lambda: self._broker.attach(generation_id, caller=leaving.caller, gateway_id=self._gateway_id)
                )
            except (UnknownGeneration, Unreadable):
                return
