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
from contract.messages import MalformedMessage

Client = redis.asyncio.Redis | redis.asyncio.RedisCluster

CLUSTER_SCHEME = "redis+cluster://"
ANSWER_TIMEOUT_S = 5.0  # beyond this bound, and what the server was asked to wait, it is dead, not slow
CONNECT_TIMEOUT_S = 2.0
RETRIES = 1  # at once, on a fresh connection: every write is idempotent. Longer waits are the caller's.
MAX_CONNECTIONS = 1024
MAX_CALLS = 256  # under way at the same time; further ones wait. What is left are pipelines and subscriptions
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
        # `answered` bounds every call instead: with a bound of its own redis-py sends by asyncio.wait_for, which on
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


class _Cluster(_Queueing, redis.asyncio.RedisCluster):  # type: ignore[misc]  # the same
    """A client at a cluster."""


def without_password(url: str) -> str:
    """The address as it may be shown and logged."""
    scheme, slashes, rest = url.partition("://")
    account, at, where = rest.rpartition("@")
    return f"{scheme}{slashes}{account.partition(':')[0]}:***@{where}" if at and ":" in account else url


class _Packing:
    """A connection that leaves packing to hiredis: redis-py's own takes 0.3 us an argument, and a step has hundreds."""

    def pack_command(self, *args: Any) -> list[bytes]:
        """As redis-py's; a name of two words is two arguments."""
        return [hiredis.pack_command((*args[0].split(), *args[1:]))]


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
    except _NO_ANSWER as error:
        raise BrokerDown from error
    except ResponseError as error:
        if str(error).startswith(_NO_ANSWER_CODES):
            raise BrokerDown from error
        if str(error).startswith(_OTHER_TYPE):
            raise MalformedMessage(str(error)) from error
        raise  # our own mistake


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
