"""A connection that speaks HTTP/2 only as far as a test wants."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
NO_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # RFC 9113, 4.1: length, type, flags, stream
PING = bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + bytes(8)
DATA, GOAWAY = 0, 7


def framed_call(path: str, message: bytes) -> bytes:
    """The frames of stream 1: a gRPC call with one message. No field is indexed or compressed (RFC 7541, 6.2.2)."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    headers = b"".join(b"\0" + _string(name) + _string(value) for name, value in fields.items())
    return _frame(1, 4, headers) + _frame(0, 1, b"\0" + len(message).to_bytes(4) + message)


def _string(text: str) -> bytes:
    assert len(text) < 127, "longer ones have their length in several bytes"
    return bytes([len(text)]) + text.encode()


def _frame(kind: int, flags: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + (1).to_bytes(4) + payload


@dataclass(slots=True)
class RawConnection:
    """Its two ends. It acknowledges nothing, and opens no window beyond the 64 KiB that every stream begins with."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        """Never waits: tests send little."""
        self.writer.write(data)

    async def frames(self) -> list[int]:
        """The types of all frames until the other side closes the connection."""
        types: list[int] = []
        try:
            while True:
                header = await self.reader.readexactly(9)
                await self.reader.readexactly(int.from_bytes(header[:3]))
                types.append(header[3])
        except (asyncio.IncompleteReadError, ConnectionError):
            return types

    async def is_answered(self) -> bool:
        """Whether the server says anything before it closes."""
        return bool(await self.reader.read(1))


@asynccontextmanager
async def raw_connection(address: str, said: bytes = b"") -> AsyncIterator[RawConnection]:
    """A connection that has said so much."""
    host, _, port = address.rpartition(":")
    connection = RawConnection(*await asyncio.open_connection(host, int(port)))
    connection.send(said)
    try:
        yield connection
    finally:
        connection.writer.close()
