"""Fixtures: a real server for one test, a broker at it, and the check that no key is left without a lifetime."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis.asyncio

from contract import keys
from contract.broker import Broker
from tests.redis_server import RunningServer, start_valkey

LASTING = (keys.META, keys.DEAD, f"{keys.TAG}:q:")  # the only keys that may live for ever


@pytest.fixture
def server() -> Iterator[RunningServer]:
    """A valkey-server of its own, with an append-only file."""
    folder = Path(tempfile.mkdtemp(prefix="herd-"))  # a socket's path is short, so not below tmp_path
    running = start_valkey(folder)
    yield running
    running.kill()
    shutil.rmtree(folder)


@pytest.fixture
def redis_url(server: RunningServer) -> str:
    """Where it answers."""
    return server.url


@pytest.fixture
async def broker(redis_url: str) -> AsyncIterator[Broker]:
    """A broker at it. Afterwards every key but queues, dead letters and the herd's shape must have a lifetime."""
    found = Broker.connect(redis_url)
    yield found
    await found.close()
    client = redis.asyncio.Redis.from_url(redis_url)
    async for key in client.scan_iter():
        if not key.decode().startswith(LASTING):
            assert await client.pttl(key) > 0, f"{key!r} lives for ever"
    await client.aclose()
