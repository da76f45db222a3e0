"""Riding out a broker that does not answer: wait, longer each time, and call again."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from contract.errors import BrokerDown

Answer = TypeVar("Answer")

FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 1.0


class Backoff:
    """Waits that double from FIRST_WAIT_S to LONGEST_WAIT_S, each shortened by up to half at random."""

    def __init__(self) -> None:
        self._wait_s = FIRST_WAIT_S

    async def wait(self) -> None:
        """Sleep; the next wait is longer."""
        await asyncio.sleep(self._wait_s * random.uniform(0.5, 1.0))
        self._wait_s = min(self._wait_s * 2, LONGEST_WAIT_S)

    def reset(self) -> None:
        """The broker answered: start over."""
        self._wait_s = FIRST_WAIT_S


async def until_answered(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """The result of `call`, made again while it raises BrokerDown. `call` must be idempotent."""
    backoff = Backoff()
    while True:
        try:
            return await call()
        except BrokerDown:
            await backoff.wait()
