"""Calls that share a connection: whose reply is whose, whatever happens to a call or to the connection."""

import asyncio
import itertools
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError, ResponseError

from contract import connection
from contract.broker import Broker
from contract.connection import RETRIES, ask
from contract.errors import BrokerDown
from contract.event_loop import new_event_loop
from contract.lifetime import spawn
from contract.line import MAX_SHORT_BYTES, Lines
from tests.ports import free_ports
from tests.redis_server import RunningServer, start_valkey
from tests.service.test_process import make_certificate
from tests.stop_listening import stop_listening
from tests.until import until

Loop = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture
def server() -> Iterator[RunningServer]:
    """A server that nobody else is connected to."""
    with tempfile.TemporaryDirectory(prefix="herd-") as folder:
        running = start_valkey(Path(folder))
        yield running
        running.kill()


@pytest.fixture
async def line(server: RunningServer) -> AsyncIterator[Any]:
    """A client whose calls share a connection."""
    client = connection.connect(server.url)
    yield client
    await client.aclose()


@pytest.fixture
async def other(server: RunningServer) -> AsyncIterator[Any]:
    """Another client, to look and to meddle."""
    client: Any = connection.connect(server.url)
    yield client
    await client.aclose()


async def numbers(client: Any, count: int) -> list[bytes]:
    """What so many calls at once are answered that each ask for their own number."""
    return list(await asyncio.gather(*(ask(client, "ECHO", number) for number in range(count))))


def in_order(count: int) -> list[bytes]:
    """What they should be."""
    return [b"%d" % number for number in range(count)]


async def test_calls_at_once_share_a_connection_and_each_has_its_reply(line: Any) -> None:
    """Errors among them too."""
    ids = await asyncio.gather(*(ask(line, "CLIENT", "ID") for _ in range(50)))
    assert len(set(ids)) == 1
    calls = [ask(line, "ECHO", number) if number % 3 else ask(line, "NONSENSE") for number in range(300)]
    for number, reply in enumerate(await asyncio.gather(*calls, return_exceptions=True)):
        assert isinstance(reply, ResponseError) if number % 3 == 0 else reply == b"%d" % number


async def test_a_cancelled_call_leaves_its_reply_to_nobody(line: Any) -> None:
    """At whatever moment, before it is written, or before or after it is answered; the connection stays."""
    before = await ask(line, "CLIENT", "ID")
    for num_turns in range(8):
        calls = [asyncio.ensure_future(ask(line, "ECHO", f"of-{number}")) for number in range(20)]
        for _ in range(num_turns):
            await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        replies = await asyncio.gather(*calls, return_exceptions=True)
        assert replies[1::2] == [b"of-%d" % number for number in range(1, 20, 2)]
        assert await numbers(line, 3) == in_order(3)
    assert await ask(line, "CLIENT", "ID") == before


async def test_calls_under_way_are_made_again_when_their_connection_is_lost(line: Any, other: Any) -> None:
    """Each once more, on one fresh connection."""
    lost = await ask(line, "CLIENT", "ID")
    await other.client_pause(60_000, all=False)
    calls = [asyncio.ensure_future(ask(line, "SET", "key", number, "GET")) for number in range(20)]
    await until(lambda: is_held_up(other), what="the first call has come, and waits")
    await other.execute_command("CLIENT", "KILL", "ID", lost)
    await until(lambda: is_held_up(other, but=lost), what="it has come again")
    await other.client_unpause()
    assert await asyncio.gather(*calls) == [None, *in_order(19)]
    assert await ask(line, "CLIENT", "ID") != lost
    await other.delete("key")


async def is_held_up(other: Any, but: int = 0) -> bool:
    """Whether the server holds a client's call back, of another one than `but`."""
    return any("b" in each["flags"] and int(each["id"]) != but for each in await other.client_list())


async def test_a_call_given_up_takes_the_connection_along(
    server: RunningServer, line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that comes late is taken for the reply to a later call; those behind it fail by their own bound."""
    await ask(line, "ECHO", "first")
    server.process.send_signal(signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(connection, "ANSWER_TIMEOUT_S", 0.1)
        calls = [ask(line, "ECHO", number) for number in range(20)] + [ask(line, "XREAD", wait_ms=1)]
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, BrokerDown)
    server.process.send_signal(signal.SIGCONT)
    assert await numbers(line, 20) == in_order(20)


async def test_a_blocking_call_has_a_connection_to_itself(line: Any, other: Any) -> None:
    """It holds nobody up, the next one uses it again, and a cancelled one ends at the server too."""
    shared = await ask(line, "CLIENT", "ID")
    read = ("XREAD", "BLOCK", 60_000, "STREAMS", "stream", "$")
    used = []
    for _ in range(2):
        call = asyncio.ensure_future(ask(line, *read, wait_ms=60_000))
        await until(lambda: blocked(other))
        assert await numbers(line, 3) == in_order(3)
        used += await blocked(other)
        await other.xadd("stream", {"k": "v"})
        [[stream, [[_, fields]]]] = await call
        assert (stream, fields) == (b"stream", [b"k", b"v"])
    assert used[0] == used[1] != shared
    call = asyncio.ensure_future(ask(line, *read, wait_ms=60_000))
    await until(lambda: blocked(other))
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await until(lambda: is_gone(other, used[0]), what="the server has dropped it")
    assert await ask(line, "CLIENT", "ID") == shared
    await other.delete("stream")


async def blocked(other: Any) -> list[int]:
    """The clients that wait in a blocking read."""
    return [int(each["id"]) for each in await other.client_list() if "b" in each["flags"]]


async def is_gone(other: Any, client_id: int) -> bool:
    """Whether the server knows it no more."""
    return all(int(each["id"]) != client_id for each in await other.client_list())


async def test_a_long_request_holds_up_no_short_one(line: Any, other: Any) -> None:
    """It goes apart, by one connection with all its like."""
    await numbers(line, 2)
    num_before = len(await other.client_list())
    calls = [ask(line, "ECHO", "x" * MAX_SHORT_BYTES) for _ in range(20)]
    assert await asyncio.gather(*calls) == 20 * [b"x" * MAX_SHORT_BYTES]
    assert len(await other.client_list()) == num_before + 1


async def test_calls_that_find_no_server_fail_together(server: RunningServer, line: Any) -> None:
    """One tries to connect for all; the next call tries again."""
    server.kill()
    made: list[None] = []

    def make_setup() -> Any:
        made.append(None)
        return line.connection_pool.make_connection()

    lines = Lines(make_setup)
    for num_tries in (1, 2):
        calls = [lines.call(("ECHO", number), 20, blocks=False) for number in range(200)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(each, ConnectionError) for each in outcomes)
        assert len(made) == num_tries
    server.start()
    assert await lines.call(("ECHO", "x"), 20, blocks=False) == b"x"
    lines.close()


async def test_a_server_that_hangs_up_is_asked_once_more() -> None:
    """By a call, or by many at once; not within the asking, as redis-py does where it pings what it connects to."""
    hung_up: list[None] = []

    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hung_up.append(None)
        writer.close()

    with tempfile.TemporaryDirectory(prefix="herd-") as folder:
        server = await asyncio.start_unix_server(hang_up, Path(folder) / "s")
        broker = Broker.connect(f"unix://{folder}/s")
        blocking = broker.read_inbox("gateway", "0", block_ms=1)
        for calls in ([broker.now_ms() for _ in range(10)], [blocking], [broker.models()]):
            hung_up.clear()
            for outcome in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(outcome, BrokerDown)
            assert len(hung_up) == 1 + RETRIES
        await broker.close()
        await stop_listening(server)


@pytest.mark.parametrize("wrong", [b"?no reply\r\n", b"+1\r\n+one too many\r\n"])
async def test_a_connection_that_says_anything_else_is_lost(wrong: bytes) -> None:
    """Nothing after it could be trusted; the call is made again on another."""
    said = itertools.chain([b"+right\r\n", wrong], itertools.repeat(b"+right\r\n"))
    async with speaker(said) as path:
        lines = Lines(lambda: RawSetup(path))
        replies = [await lines.call(("ECHO", "x"), 20, blocks=False) for _ in range(3)]
        lines.close()
    assert replies == [b"right", b"1" if b"1" in wrong else b"right", b"right"]


class RawSetup:
    """A connection as redis-py would hand it over, to a server that knows no handshake."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def connect(self) -> None:
        """Connect."""
        _, self.writer = await asyncio.open_unix_connection(self.path)

    async def disconnect(self, nowait: bool = False) -> None:
        """Nothing is left to close."""

    def hand_over(self, to: asyncio.Protocol) -> asyncio.StreamWriter:
        """As asked."""
        self.writer.transport.set_protocol(to)
        return self.writer


@asynccontextmanager
async def speaker(said: Iterator[bytes]) -> AsyncIterator[Path]:
    """A server that says the next thing to whatever comes; its path."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            writer.write(next(said))
        writer.close()
        num_left.append(None)

    num_left: list[None] = []
    with tempfile.TemporaryDirectory(prefix="herd-") as folder:
        server = await asyncio.start_unix_server(answer, Path(folder) / "s")
        yield Path(folder) / "s"
        await until(lambda: len(num_left) == 2, what="both connections have ended")
        await stop_listening(server)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, new_event_loop])
def test_what_is_handed_over_is_let_in(loop: Loop, tmp_path: Path) -> None:
    """TLS, user, password and database are redis-py's to set up, on either event loop."""
    key, cert = make_certificate(tmp_path)
    binary = shutil.which("redis-server")
    assert binary, "install the packages of scripts/apt-packages.txt"
    with free_ports(1) as [port]:
        settings = f"""
            port 0\ntls-port {port}\nbind 127.0.0.1\nsave ""\ntls-auth-clients no
            tls-cert-file {cert}\ntls-key-file {key}\ntls-ca-cert-file {cert}
            user herd on >secret ~* &* +@all\nuser default off
        """
        (tmp_path / "redis.conf").write_text(settings)
        child = spawn([binary, str(tmp_path / "redis.conf")], stdout=subprocess.DEVNULL)
        url = f"rediss://herd:secret@localhost:{port}/3?ssl_ca_certs={cert}"
        try:
            with asyncio.Runner(loop_factory=loop) as runner:
                runner.run(_use(url))
        finally:
            child.kill()
            child.wait()


async def _use(url: str) -> None:
    client: Any = connection.connect(url)

    async def is_up() -> bool:
        try:
            return bool(await ask(client, "PING") == b"PONG")
        except BrokerDown:
            return False

    await until(is_up)
    me = (await ask(client, "CLIENT", "INFO")).decode().split()
    assert {"user=herd", "db=3"} <= set(me)
    assert await numbers(client, 20) == in_order(20)
    assert len(await ask(client, "ECHO", "x" * 1_000_000)) == 1_000_000
    await client.aclose()
