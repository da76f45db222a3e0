"""A cable between a client and a gateway that breaks again and again, each connection after so many bytes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.stop_listening import stop_listening

FIRST_BYTES = 900
GROWTH = 1.4  # a connection that brings nothing new is followed by a longer one: in the end everything comes


@dataclass
class Cuts:
    """How the cables of one scenario break: all of them share one allowance, that grows from cut to cut."""

    num_bytes: float = FIRST_BYTES
    num_cuts: int = 0

    def take(self) -> int:
        """So many bytes go to the client before the cut."""
        return int(self.num_bytes)

    def cut(self) -> None:
        """One connection broke."""
        self.num_cuts += 1
        self.num_bytes *= GROWTH


@asynccontextmanager
async def cut_cable(address: str, cuts: Cuts) -> AsyncIterator[str]:
    """An address that leads to `address`."""
    host, _, port = address.rpartition(":")
    joined: set[asyncio.Task[None]] = set()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        joined.add(task)
        onward_reader, onward_writer = await asyncio.open_connection(host, int(port))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, onward_writer))
                group.create_task(_pump_until_cut(onward_reader, writer, onward_writer, cuts))
        finally:
            writer.transport.abort()
            onward_writer.transport.abort()
            joined.discard(task)

    server = await asyncio.start_server(join, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        await stop_listening(server)
        for task in joined:
            task.cancel()
        await asyncio.gather(*joined, return_exceptions=True)
        await server.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
    except ConnectionError:
        pass
    writer.transport.abort()


async def _pump_until_cut(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, back: asyncio.StreamWriter, cuts: Cuts
) -> None:
    """Delivers the last bytes before the cut, which may fall within a message; then an end that nobody announced."""
    left = cuts.take()
    try:
        while chunk := await reader.read(65536):
            writer.write(chunk[:left])
            await writer.drain()
            left -= len(chunk)
            if left <= 0:
                cuts.cut()
                writer.close()
                await writer.wait_closed()
                break
    except ConnectionError:
        pass
    writer.transport.abort()
    back.transport.abort()
