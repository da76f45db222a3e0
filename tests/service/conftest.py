"""A valkey, a scripted worker and a gateway, each real and shared by the tests of this folder."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from contract import keys
from contract.broker import Broker
from contract.bundle import ChatFormat, ChatFormatKind, ModelBundle
from llamaherd.v1 import model_pb2, model_pb2_grpc
from tests.redis_server import RunningServer, start_valkey
from tests.service.bundles import bundle
from tests.service.gateways import RunningGateway, running_gateway
from tests.service.scripted_worker import ScriptedWorker, scripted_worker
from tests.tokenizer_models import train_llama2_like, write_model_folder
from tests.until import until
from worker.bundle import build_bundle

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


@pytest.fixture(scope="module")
async def other(valkey: RunningServer, worker: ScriptedWorker) -> AsyncIterator[RunningGateway]:
    """A second gateway of the same herd, where nobody waits long for a log to grow."""
    async with running_gateway(valkey.url, resume_wait_s=0.4) as gateway:
        await until(lambda: is_serving(gateway), what="the gateway sees the worker")
        yield gateway


@pytest.fixture(scope="session")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """A model with a vocabulary of words that takes conversations."""
    folder = write_model_folder(tmp_path_factory.mktemp("model"), train_llama2_like())
    return build_bundle(folder, quantization="nf4-dq", chat_format=ChatFormat(ChatFormatKind.LLAMA2))


@pytest.fixture(scope="session")
def models_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of its own, where these models are all there are."""
    running = start_valkey(short_folder(tmp_path_factory))
    yield running
    running.kill()


@pytest.fixture(scope="session")
async def models_gateway(models_server: RunningServer, spoken: ModelBundle) -> AsyncIterator[RunningGateway]:
    """A gateway that sees three models live, and one that was announced by a worker now gone."""
    broker = Broker.connect(models_server.url)
    live = {
        "base": bundle(ChatFormatKind.NONE, do_sample=False),
        "letters": bundle(temperature=0.6, top_p=0.9, do_sample=True, max_new_tokens=77),
        "words": spoken,
    }
    gone = bundle(temperature=0.1)
    await broker.announce("gone", gone.digest, gone.to_bytes())
    async with scripted_worker(broker, live), running_gateway(models_server.url) as gateway:
        stub = model_pb2_grpc.ModelServiceStub(gateway.channel)

        async def all_are_seen() -> bool:
            return len((await stub.ListModels(model_pb2.ListModelsRequest())).models) == 3

        await until(all_are_seen)
        yield gateway
    await broker.close()


@pytest.fixture(scope="session")
def stub(models_gateway: RunningGateway) -> Any:
    """ModelService there."""
    return model_pb2_grpc.ModelServiceStub(models_gateway.channel)


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
