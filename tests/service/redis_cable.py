"""A cable between a process and its Redis that holds the calls of one script back, and can lose the answer of one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from contract.scripts import load_script
from tests.stop_listening import stop_listening


class RedisCable:
    """Carries every connection to the socket `onward`.

    Redis answers the calls of a connection in order, so the next bytes back are the answer to it, or to one before it:
    with the connection both are lost.

    Attributes:
        num_held: calls of the script that wait while it is held back.
        num_lost: answers of the script that were lost, each with its connection.
    """

    def __init__(self, onward: Path, script: str) -> None:
        self.num_held = 0
        self.num_lost = 0
        self._onward = onward
        self._sha1 = load_script(script).sha1.encode()
        self._flows = asyncio.Event()
        self._flows.set()
        self._num_to_lose = 0
        self._writers: set[asyncio.StreamWriter] = set()

    def hold(self) -> None:
        """Let no call of the script through, nor what its connection has to say after it."""
        self._flows.clear()

    def let_go(self, *, num_lost: int = 0) -> None:
        """Let them through; so many of the next ones are carried out, and their answers lost."""
        self._num_to_lose = num_lost
        self._flows.set()

    def close(self) -> None:
        """End every connection."""
        self._flows.set()
        for writer in self._writers:
            writer.transport.abort()

    async def join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        onward_reader, onward_writer = await asyncio.open_unix_connection(self._onward)
        loses_answer = asyncio.Event()
        both = {writer, onward_writer}
        self._writers |= both
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, onward_writer, loses_answer))
                group.create_task(self._carry_back(onward_reader, writer, loses_answer))
        finally:
            for each in both:
                each.transport.abort()
            self._writers -= both

    async def _carry(
        self, reader: asyncio.StreamReader, onward: asyncio.StreamWriter, loses_answer: asyncio.Event
    ) -> None:
        while chunk := await _read(reader):
            if self._sha1 in chunk:
                self.num_held += 1
                await self._flows.wait()
                self.num_held -= 1
                if self._num_to_lose:
                    self._num_to_lose -= 1
                    loses_answer.set()
            onward.write(chunk)
        onward.transport.abort()

    async def _carry_back(
        self, reader: asyncio.StreamReader, back: asyncio.StreamWriter, loses_answer: asyncio.Event
    ) -> None:
        while chunk := await _read(reader):
            if loses_answer.is_set():
                self.num_lost += 1
                break
            back.write(chunk)
        back.transport.abort()


@asynccontextmanager
async def redis_cable(onward: Path, path: Path, script: str) -> AsyncIterator[RedisCable]:
    """A cable from the socket `path` to the socket `onward`; both paths are short."""
    cable = RedisCable(onward, script)
    server = await asyncio.start_unix_server(cable.join, path)
    try:
        yield cable
    finally:
        await stop_listening(server)
        cable.close()
        await server.wait_closed()


async def _read(reader: asyncio.StreamReader) -> bytes:
    """b'' at the end, however it comes."""
    try:
        return await reader.read(1 << 20)
    except ConnectionError:
        return b""
