"""A valkey, a scripted worker and a gateway, each real and shared by the tests of this folder."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
import redis.asyncio

from contract import keys
from contract.broker import Broker
from contract.bundle import ChatFormatKind
from tests.redis_server import RunningServer, start_valkey
from tests.service.bundles import bundle
from tests.service.gateways import RunningGateway, running_gateway
from tests.service.scripted_worker import ScriptedWorker, scripted_worker
from tests.until import until

LASTING = (f"{keys.TAG}:q:", keys.DEAD, keys.META)  # never expire: jobs streams, the dead, the herd's constants


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server for all; afterwards it holds no key without a lifetime but those that are meant to last."""
    server = start_valkey(short_folder(tmp_path_factory))
    yield server
    with redis.Redis.from_url(server.url) as client:
        lasting = [key.decode() for key in client.scan_iter() if client.pttl(key) == -1]
    server.kill()
    assert [key for key in lasting if not key.startswith(LASTING)] == []


@pytest.fixture(scope="session")
async def broker(valkey: RunningServer) -> AsyncIterator[Broker]:
    """The tests' own door to the server."""
    broker = Broker.connect(valkey.url)
    yield broker
    await broker.close()


@pytest.fixture(scope="session")
async def raw(valkey: RunningServer) -> AsyncIterator["redis.asyncio.Redis"]:
    """Redis itself, for doing what no process of ours would do."""
    async with redis.asyncio.Redis.from_url(valkey.url) as client:
        yield client


@pytest.fixture(scope="session")
async def worker(broker: Broker) -> AsyncIterator[ScriptedWorker]:
    """Serves `chat`, with Llama 2's usual defaults, and `base`, which has no chat format and is greedy."""
    models = {
        "chat": bundle(temperature=0.6, top_p=0.9, do_sample=True),
        "base": bundle(ChatFormatKind.NONE, do_sample=False),
    }
    async with scripted_worker(broker, models) as worker:
        yield worker


@pytest.fixture(scope="session")
async def gateway(valkey: RunningServer, worker: ScriptedWorker) -> AsyncIterator[RunningGateway]:
    """A gateway that sees the worker live."""
    async with running_gateway(valkey.url) as gateway:
        await until(lambda: is_serving(gateway), what="the gateway sees the worker")
        yield gateway


async def is_serving(gateway: RunningGateway) -> bool:
    """Whether the gateway's health is SERVING."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    answer = await health_pb2_grpc.HealthStub(gateway.channel).Check(health_pb2.HealthCheckRequest())
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def short_folder(factory: pytest.TempPathFactory) -> Path:
    """A folder whose path leaves room for a socket's name: the kernel takes 108 bytes."""
    folder = factory.mktemp("v")
    assert len(str(folder)) < 90, folder
    return folder
