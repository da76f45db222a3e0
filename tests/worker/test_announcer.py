"""What a worker serves stays announced, whatever becomes of Redis' contents."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis.asyncio

from contract import keys
from contract.broker import Broker
from tests.redis_server import RunningServer
from tests.until import until
from tests.worker.double_engine_process import double_bundle
from tests.worker.engine_double import expected_ids
from tests.worker.rig import GATEWAY, MODEL, finished, local_worker, make_job
from worker import announcer


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a test does not take a second."""
    monkeypatch.setattr(announcer, "LOOK_S", 0.05)


async def empty(server: RunningServer) -> None:
    """All at once, on connections that stay: the worker cannot tell it from what it hears of Redis otherwise."""
    client = redis.asyncio.Redis.from_url(server.url)
    await client.flushall()
    await client.aclose()


async def restart_empty(server: RunningServer) -> None:
    """Killed, and started without its file."""
    server.kill()
    server.forget()
    server.start()


async def lose_announcement(server: RunningServer) -> None:
    """As with the tail of the file: the model is there as a worker of another bundle had announced it before."""
    client: Any = redis.asyncio.Redis.from_url(server.url)  # redis-py's types do not tell sync from async
    async with client.pipeline(transaction=True) as pipe:
        pipe.delete(keys.bundle(double_bundle().digest))
        pipe.hset(keys.model(MODEL), "digest", "earlier")
        await pipe.execute()
    await client.aclose()


@pytest.mark.parametrize("lose", [empty, restart_empty, lose_announcement])
async def test_a_lost_announcement_is_made_again(
    broker: Broker, server: RunningServer, lose: Callable[[RunningServer], Awaitable[None]]
) -> None:
    """By the next look; a job that comes then is served."""
    digest = double_bundle().digest
    async with local_worker(broker):
        await until(lambda: broker.is_announced(MODEL, digest))
        await lose(server)
        await until(lambda: broker.is_announced(MODEL, digest))

        assert await broker.models() == {MODEL: digest}
        job = make_job([5], 6)
        await broker.submit(job, caller="anonymous", digest="d", gateway_id=GATEWAY, max_waiting=9, window_ms=600_000)
        assert (await finished(broker, job.generation_id)).ids == expected_ids([5], 6)


async def test_what_is_announced_is_renewed(
    broker: Broker, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it expires."""
    monkeypatch.setattr(announcer, "RENEW_S", 0.0)
    client: Any = redis.asyncio.Redis.from_url(server.url)
    async with local_worker(broker):
        await until(lambda: broker.is_announced(MODEL, double_bundle().digest))
        await client.pexpire(keys.model(MODEL), 600_000)
        await until(lambda: lasts_longer(client))
    await client.aclose()


async def lasts_longer(client: Any) -> bool:
    """Whether the announcement expires in more than the ten minutes that it was given."""
    return bool(await client.pttl(keys.model(MODEL)) > 600_000)
