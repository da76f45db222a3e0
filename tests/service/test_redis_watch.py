"""A process says once that Redis breaks a promise, and once more for each change, over restarts of Redis too."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis.asyncio
from structlog.testing import capture_logs

from contract.broker import Broker, Weakness
from telemetry import redis_watch
from telemetry.redis_watch import RedisWatch
from tests.redis_server import start_valkey
from tests.service.conftest import short_folder
from tests.until import until


@dataclass(slots=True)
class Looks:
    """Counts the looks that were answered."""

    broker: Broker
    found: list[set[str]] = field(default_factory=list)

    async def __call__(self) -> Sequence[Weakness]:
        """One look."""
        weaknesses = await self.broker.find_weaknesses()
        self.found.append({each.kind.value for each in weaknesses})
        return weaknesses


@asynccontextmanager
async def watching(looks: Looks) -> AsyncIterator[RedisWatch]:
    """A watch that runs for the length of the block."""
    watch = RedisWatch(looks)
    task = asyncio.create_task(watch.run())
    yield watch
    task.cancel()
    await asyncio.wait([task])


async def looked_again(looks: Looks, found: set[str]) -> None:
    """Two looks after another have found this: what was told of the first was told by the second."""
    await until(lambda: looks.found[-2:] == [found, found])
    looks.found.clear()


async def test_each_change_is_told_once(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file goes by a setting, comes back, and is missing after a restart with another configuration."""
    monkeypatch.setattr(redis_watch, "LOOK_S", 0.01)
    server = start_valkey(short_folder(tmp_path_factory))
    looks = Looks(Broker.connect(server.url))
    client: Any = redis.asyncio.Redis.from_url(server.url)
    with capture_logs() as logs:
        async with watching(looks) as watch:
            await looked_again(looks, set())
            assert not any(value for value, _ in watch._read())
            await client.config_set("appendonly", "no")
            await looked_again(looks, {"forgets"})
            assert {tuple(labels.values()): value for value, labels in watch._read()} == {
                ("forgets",): 1,
                ("evicted",): 0,
                ("unwritten",): 0,
                ("evicts",): 0,
            }
            await client.config_set("appendonly", "yes")
            await looked_again(looks, set())
            server.kill()
            server.command[server.command.index("--appendonly") + 1] = "no"
            server.start()
            await looked_again(looks, {"forgets"})
            await client.config_set("maxmemory-policy", "allkeys-lru")
            await looked_again(looks, {"forgets", "evicts"})
    await client.aclose()
    await looks.broker.close()
    server.kill()

    told = [(each["log_level"], each["weakness"]) for each in logs if "weakness" in each]
    assert told == [("warning", "forgets"), ("info", "forgets"), ("warning", "forgets"), ("warning", "evicts")]
