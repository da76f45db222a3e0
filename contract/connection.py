"""Connections to Redis, Valkey or a cluster, and one error for everything that goes wrong on them."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import hiredis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import (
    AskError,
    ClusterError,
    ConnectionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from contract.errors import BrokerDown, ServerUnfit
from contract.line import Lines
from contract.messages import MalformedMessage

Client = redis.asyncio.Redis | redis.asyncio.RedisCluster

CLUSTER_SCHEME = "redis+cluster://"
ANSWER_TIMEOUT_S = 5.0  # beyond this bound, and what the server was asked to wait, it is dead, not slow
CONNECT_TIMEOUT_S = 2.0
RETRIES = 1  # at once, on a fresh connection: every write is idempotent. Longer waits are the caller's.
MAX_CONNECTIONS = 1024
MAX_CALLS = 256  # of redis-py's, at the same time; further ones wait. What is left are pipelines and subscriptions
MIN_WAIT_S, MAX_WAIT_S = 0.05, 1.0  # between attempts to subscribe again

# The server is away, starting, in the middle of a failover, or full.
_NO_ANSWER = (
    ConnectionError,
    TimeoutError,
    ClusterError,
    RedisClusterException,
    ReadOnlyError,
    AskError,
    TryAgainError,
    OutOfMemoryError,
    OSError,
)
_NO_ANSWER_CODES = ("NOREPLICAS", "MISCONF", "BUSY")  # redis-py knows no class for these
_OTHER_TYPE = "WRONGTYPE"  # likewise


def connect(url: str) -> Client:
    """A client for redis://, rediss://, unix:///path or redis+cluster://host:port; connects when first used.

    Raises ServerUnfit for anything else.
    """
    options: dict[str, Any] = {
        # `ask` and `answered` bound every call: with a bound of its own redis-py sends by asyncio.wait_for, which on
        # Python 3.11 loses a cancellation that comes in the moment it is done, and with it the end of a loop.
        "socket_timeout": None,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "retry": Retry(ExponentialBackoff(cap=0.05, base=0.01), RETRIES),
        "max_connections": MAX_CONNECTIONS,
        "protocol": 2,  # replies have the same shape with every redis-py and server
    }
    try:
        if "://" not in url:  # redis-py takes redis:6379 for a database of this machine
            raise ValueError(
                "it begins with redis://, rediss://, unix:// or redis+cluster://"
            )  # redis-py takes redis:x
        if url.startswith(CLUSTER_SCHEME):
            return _Cluster.from_url(f"redis://{url.removeprefix(CLUSTER_SCHEME)}", **options)
        pool = redis.asyncio.ConnectionPool.from_url(url, health_check_interval=15, **options)
    except ValueError as error:
        raise ServerUnfit(f"{without_password(url)!r} is no address of a Redis: {error}") from None
    pool.connection_class = type("PackingConnection", (_Packing, pool.connection_class), {})
    return _Single.from_pool(pool)


class _Queueing:
    """A client whose calls wait for one another beyond MAX_CALLS: redis-py fails those that find no connection."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._places = asyncio.Semaphore(MAX_CALLS)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """As redis-py's."""
        async with self._places:
            return await super().execute_command(*args, **options)  # type: ignore[misc]  # of the client's class


class _Single(_Queueing, redis.asyncio.Redis):  # type: ignore[misc]  # bases of redis-py disagree
    """A client at one server."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.lines = Lines(self.connection_pool.make_connection)

    async def aclose(self, *args: Any, **options: Any) -> None:
        """As redis-py's."""
        self.lines.close()
        await super().aclose(*args, **options)


class _Cluster(_Queueing, redis.asyncio.RedisCluster):  # type: ignore[misc]  # the same
    """A client at a cluster."""


def without_password(url: str) -> str:
    """The address as it may be shown and logged."""
    scheme, slashes, rest = url.partition("://")
    account, at, where = rest.rpartition("@")
    return f"{scheme}{slashes}{account.partition(':')[0]}:***@{where}" if at and ":" in account else url


class _Packing:
    """A connection that can be handed over, and leaves packing to hiredis: redis-py's own takes 0.3 us an argument."""

    def pack_command(self, *args: Any) -> list[bytes]:
        """As redis-py's; a name of two words is two arguments."""
        return [hiredis.pack_command((*args[0].split(), *args[1:]))]

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        """As redis-py's, but nothing is pinged while it is let in: where a server hangs up, that connects within
        connecting, a hundred times a second."""
        await super().on_connect_check_health(check_health=False)  # type: ignore[misc]  # of the connection's class

    def hand_over(self, to: asyncio.Protocol) -> asyncio.StreamWriter:
        """As line.Setup has it. To redis-py this one is not connected any more."""
        writer: asyncio.StreamWriter = self._writer  # type: ignore[has-type]  # of the connection's class
        self._reader = self._writer = None
        writer.transport.set_protocol(to)
        return writer


async def ask(client: Client, *command: Any, wait_ms: int = 0) -> Any:
    """The bare reply to one command, by the shortest way there is; errors as `answered` has them.

    Args:
        wait_ms: how long the server is asked to wait.
    """
    timeout_s = ANSWER_TIMEOUT_S + wait_ms / 1000
    try:
        if isinstance(client, _Single):
            return await client.lines.call(command, timeout_s, blocks=wait_ms > 0)
        async with asyncio.timeout(timeout_s):
            return await client.execute_command(*command)
    except Exception as error:
        if (told := _told(error)) is None:
            raise
        raise told from error


async def read_stream(client: Client, *command: Any, wait_ms: int) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """The entries that XREAD or XREADGROUP brings of its one stream."""
    answer = await ask(client, *command, wait_ms=wait_ms)
    entries = answer[0][1] if answer else []
    return [(entry_id, as_read if isinstance(as_read, dict) else _pairs(as_read)) for entry_id, as_read in entries]


def _pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    """What redis-py makes of an entry's fields, here where it was not asked."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


@asynccontextmanager
async def answered(wait_ms: int = 0) -> AsyncIterator[None]:
    """Bound a call; whatever says that the server cannot serve now comes out as BrokerDown.

    A key that something else has overwritten with another type is MalformedMessage, as damaged bytes are.

    Args:
        wait_ms: how long the server was asked to wait.
    """
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S + wait_ms / 1000):
            yield
    except Exception as error:
        if (told := _told(error)) is None:
            raise
        raise told from error


def _told(error: Exception) -> Exception | None:
    """As ours; None: our own mistake, or of no concern here."""
    if isinstance(error, _NO_ANSWER):
        return BrokerDown()
    if not isinstance(error, ResponseError):
        return None
    if str(error).startswith(_NO_ANSWER_CODES):
        return BrokerDown()
    return MalformedMessage(str(error)) if str(error).startswith(_OTHER_TYPE) else None


async def each_answer(pipe: Any) -> list[Any]:
    """What a pipeline's commands answer, None for one that met a key of another type: it harms none of the others."""
    answers = await pipe.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, Exception) and not str(answer).startswith(_OTHER_TYPE):
            raise answer
    return [None if isinstance(answer, Exception) else answer for answer in answers]


@asynccontextmanager
async def listen(client: Client, channels: tuple[str, ...]) -> AsyncIterator[AsyncIterator[str]]:
    """Subscribe; yields the name of a channel for each message, and for each (re)connection once every channel's.

    Messages only shorten a wait, and those sent while the connection was down are lost: that is why a new connection
    counts as one. In a cluster any node carries them all.
    """
    async with aclosing(_messages(client, channels)) as stream:
        yield stream


async def _messages(client: Client, channels: tuple[str, ...]) -> AsyncGenerator[str, None]:
    wait_s = MIN_WAIT_S
    while True:
        try:
            async with _subscriber(client) as pubsub:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    await pubsub.subscribe(*channels)
                while True:
                    message = await pubsub.get_message(timeout=1.0)
                    wait_s = MIN_WAIT_S
                    if message is not None and message["type"] in ("message", "subscribe"):
                        yield message["channel"].decode()
        except _NO_ANSWER:
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, MAX_WAIT_S)


@asynccontextmanager
async def _subscriber(client: Client) -> AsyncIterator[Any]:
    """A connection for messages: to the server, or to any node of the cluster."""
    if not isinstance(client, redis.asyncio.RedisCluster):
        async with client.pubsub() as pubsub:
            yield pubsub
        return
    await client.initialize()
    node = random.choice(client.get_nodes())
    pool = redis.asyncio.ConnectionPool(connection_class=node.connection_class, **node.connection_kwargs)
    async with redis.asyncio.Redis.from_pool(pool) as single, single.pubsub() as pubsub:
        yield pubsub
