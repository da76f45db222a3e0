"""Both clients behind one face, so that each test is written once: the threads' one runs in a thread."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamaherd.client import AsyncClient, AsyncStream, Client, Delta, HerdError, Stream


@dataclass(slots=True)
class Read:
    """What a stream brought."""

    deltas: list[Delta] = field(default_factory=list)
    error: HerdError | None = None
    stream: Stream | AsyncStream | None = None

    @property
    def texts(self) -> list[str]:
        """The text of each choice."""
        choices = 1 + max((delta.choice for delta in self.deltas), default=-1)
        return ["".join(d.text for d in self.deltas if d.choice == choice) for choice in range(choices)]

    @property
    def positions(self) -> list[int]:
        """Of the tokens, as they came."""
        return [token.position for delta in self.deltas for token in delta.tokens]

    @property
    def facts(self) -> Stream | AsyncStream:
        """The stream."""
        assert self.stream is not None
        return self.stream


Open = Callable[[Any], Any]  # a client -> a stream
Ask = Callable[..., Awaitable[Read]]
OnDelta = Callable[[Read], Coroutine[Any, Any, None]]


async def nothing_more(_: Read) -> None:
    """Go on reading."""


async def read_sync(
    addresses: Sequence[str],
    open_stream: Open,
    *,
    on_delta: OnDelta = nothing_more,
    leave_after: int | None = None,
    **options: Any,
) -> Read:
    """All deltas by `Client`, or the first `leave_after` and then a `break`."""
    loop = asyncio.get_running_loop()

    def read() -> Read:
        got = Read()
        with Client(addresses, **options) as client:
            got.stream = stream = open_stream(client)
            try:
                for delta in stream:
                    got.deltas.append(delta)
                    asyncio.run_coroutine_threadsafe(on_delta(got), loop).result()
                    if len(got.deltas) == leave_after:
                        break
            except HerdError as error:
                got.error = error
        return got

    return await asyncio.to_thread(read)


async def read_async(
    addresses: Sequence[str],
    open_stream: Open,
    *,
    on_delta: OnDelta = nothing_more,
    leave_after: int | None = None,
    **options: Any,
) -> Read:
    """The same by `AsyncClient`."""
    got = Read()
    async with AsyncClient(addresses, **options) as client:
        stream: AsyncStream = open_stream(client)
        got.stream = stream
        try:
            async with stream:
                async for delta in stream:
                    got.deltas.append(delta)
                    await on_delta(got)
                    if len(got.deltas) == leave_after:
                        break
        except HerdError as error:
            got.error = error
    return got
