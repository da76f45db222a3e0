"""Connections to Redis, Valkey or a cluster, and one error for everything that goes wrong on them."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import BusyLoadingError, ClusterDownError, ConnectionError, TimeoutError

from contract.errors import BrokerDown

Client = redis.asyncio.Redis | redis.asyncio.RedisCluster

CLUSTER_SCHEME = "redis+cluster://"
# A blocking read waits on the server for at most a second; beyond this bound the connection is dead, not slow.
SOCKET_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 2.0
RETRIES = 1  # at once, on a fresh connection: every write is idempotent. Longer waits are the caller's.


class ServerUnfit(Exception):
    """This Redis would lose or refuse what the protocol needs."""


def connect(url: str) -> Client:
    """A client for redis://, rediss://, unix:///path or redis+cluster://host:port; connects when first used."""
    options: dict[str, Any] = {
        "socket_timeout": SOCKET_TIMEOUT_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "retry": Retry(ExponentialBackoff(cap=0.05, base=0.01), RETRIES),
    }
    if url.startswith(CLUSTER_SCHEME):
        return redis.asyncio.RedisCluster.from_url(f"redis://{url.removeprefix(CLUSTER_SCHEME)}", **options)
    return redis.asyncio.Redis.from_url(url, health_check_interval=15, max_connections=1024, **options)


@contextmanager
def broker_errors() -> Iterator[None]:
    """Whatever the connection raises comes out as BrokerDown."""
    try:
        yield
    except (ConnectionError, TimeoutError, BusyLoadingError, ClusterDownError, OSError) as error:
        raise BrokerDown from error


@asynccontextmanager
async def listen(client: Client, channels: tuple[str, ...]) -> AsyncIterator[AsyncIterator[str]]:
    """Subscribe; yields the name of a channel for each message, and for each (re)connection once every channel's.

    Messages only shorten a wait, and those sent while the connection was down are lost: that is why a new connection
    counts as one. In a cluster any node carries them all.
    """
    if isinstance(client, redis.asyncio.RedisCluster):
        node = client.get_default_node()
        single: redis.asyncio.Redis = redis.asyncio.Redis(host=node.host, port=int(node.port))
    else:
        single = client
    pubsub = single.pubsub(ignore_subscribe_messages=False)

    async def messages() -> AsyncIterator[str]:
        wait_s = 0.05
        while True:
            try:
                if not pubsub.subscribed:
                    await pubsub.subscribe(*channels)
                message = await pubsub.get_message(timeout=1.0)
                wait_s = 0.05
            except (ConnectionError, TimeoutError, BusyLoadingError, OSError):
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, 1.0)
                continue
            if message is not None and message["type"] in ("message", "subscribe"):
                yield message["channel"].decode()

    stream = messages()
    try:
        yield stream
    finally:
        await stream.aclose()  # type: ignore[attr-defined]  # an async generator, typed as the iterator callers need
        await pubsub.aclose()  # type: ignore[no-untyped-call]
        if single is not client:
            await single.aclose()
