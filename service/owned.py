"""Calls that run to their end though whoever waits for them is cancelled.

A write to Redis whose waiter vanishes has an unknown outcome, and what must follow it cannot be ordered after it. So
the call belongs to the gateway's task group, and its waiter only watches.
"""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class Outcome(Generic[Value]):
    """What a call returned or raised: an exception must not end the task group that owns the call."""

    def __init__(self, value: Value | None, error: Exception | None) -> None:
        self._value = value
        self._error = error

    def get(self) -> Value:
        """The value; raises what the call raised."""
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # a call without an error has a value, which may be None


class OwnedCalls:
    """Starts calls in a task group."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group

    def start(self, call: Coroutine[Any, Any, Value]) -> asyncio.Task[Outcome[Value]]:
        """Start `call`; wait for it with `wait`."""
        return self._group.create_task(_outcome(call))

    @staticmethod
    async def wait(task: asyncio.Task[Outcome[Value]]) -> Value:
        """The call's result. Being cancelled here does not cancel the call."""
        return (await asyncio.shield(task)).get()


async def _outcome(call: Awaitable[Value]) -> Outcome[Value]:
    try:
        return Outcome(await call, None)
    except Exception as error:
        return Outcome(None, error)
