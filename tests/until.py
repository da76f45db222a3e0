"""Waiting for a condition instead of for a time."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

POLL_S = 0.01


async def until(
    predicate: Callable[[], object] | Callable[[], Awaitable[object]], timeout_s: float = 20.0, what: str = ""
) -> None:
    """Return once `predicate()` is true; raise TimeoutError, naming the condition, if it never is."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        answer = predicate()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"not true within {timeout_s} s: {what or inspect.getsource(predicate).strip()}")
        await asyncio.sleep(POLL_S)


def until_now(predicate: Callable[[], object], timeout_s: float = 20.0, what: str = "") -> None:
    """The same for code without an event loop."""
    deadline_s = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"not true within {timeout_s} s: {what or inspect.getsource(predicate).strip()}")
        time.sleep(POLL_S)
