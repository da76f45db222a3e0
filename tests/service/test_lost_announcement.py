"""Redis comes back without what workers announced: their models are not unknown until they announce them again."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis.asyncio

from contract.broker import Broker
from contract.errors import UnknownModel
from service import models as module
from service.models import Models
from tests.redis_server import RunningServer, start_valkey
from tests.service.bundles import bundle
from tests.service.conftest import short_folder
from tests.until import until


@pytest.fixture
async def own_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    """One that loses everything."""
    server = start_valkey(short_folder(tmp_path_factory))
    yield server
    server.kill()


async def live_models(broker: Broker) -> Models:
    """A view of a herd in which a worker of `chat` lives."""
    served = bundle()
    await broker.announce("chat", served.digest, served.to_bytes())
    models = Models(broker, dead_after_s=60.0, stale_after_s=60.0)
    for _ in range(2):
        await broker.worker_beat("w", {"model": "chat"})
        await models.poll()
    assert models.live == {"chat": 1}
    return models


async def test_a_live_model_is_kept_for_a_while(own_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its tokenizer; then it is as if it had never been."""
    monkeypatch.setattr(module, "ANNOUNCED_EVERY_S", 0.0)
    broker = Broker.connect(own_server.url)
    models = await live_models(broker)
    served = await models.get("chat")
    async with redis.asyncio.Redis.from_url(own_server.url) as client:
        await client.flushall()
    await models.poll()

    assert models.live == {}
    assert models.name_of("chat") == "chat"
    assert await models.get("chat") is served
    monkeypatch.setattr(module, "FORGET_S", 0.0)
    await models.poll()
    with pytest.raises(UnknownModel):
        models.name_of("chat")
    await broker.close()


async def test_the_while_begins_when_redis_is_back(own_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it was away."""
    broker = Broker.connect(own_server.url)
    models = await live_models(broker)
    known_after: list[frozenset[str]] = []  # each poll that Redis answered, once it had been away

    def note() -> None:
        if not models.is_broker_down:
            known_after.append(models.known)

    watching = asyncio.create_task(models.watch(note))
    own_server.kill()
    await until(lambda: models.is_broker_down)
    known_after.clear()
    monkeypatch.setattr(module, "ANNOUNCED_EVERY_S", 0.0)
    monkeypatch.setattr(module, "FORGET_S", 0.0)
    own_server.forget()
    own_server.start()
    await until(lambda: len(known_after) > 1)
    watching.cancel()
    await asyncio.wait([watching])

    assert known_after[:2] == [{"chat"}, frozenset()]
    await broker.close()
