"""Health of each model: real gateways and worker processes, one of whose engines is frozen or hangs."""

import os
import signal
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from contract.broker import Broker
from service.health import model_service
from tests.redis_server import RunningServer, start_valkey
from tests.service.conftest import short_folder
from tests.service.gateways import RunningGateway, running_gateway
from tests.until import until
from tests.worker.engine_double import HANG
from tests.worker.rig import beat_of, make_job, submit, worker_process

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
STALE_AFTER_S = 3.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of its own."""
    running = start_valkey(short_folder(tmp_path_factory))
    yield running
    running.kill()


@pytest.fixture(scope="module")
async def broker(server: RunningServer) -> AsyncIterator[Broker]:
    """A door to it."""
    broker = Broker.connect(server.url)
    yield broker
    await broker.close()


@pytest.fixture(scope="module")
async def gateway(server: RunningServer) -> AsyncIterator[RunningGateway]:
    """A gateway that soon calls a device stale."""
    async with running_gateway(server.url, stale_after_s=STALE_AFTER_S) as gateway:
        yield gateway


def worker(server: RunningServer, model: str, tmp_path: Path, **variables: str) -> Any:
    """Supervisor and engine process of `model`, with the engine double."""
    return worker_process(server.url, tmp_path / model, HERD_WORKER_MODEL_NAME=model, **variables)


async def status(gateway: RunningGateway, model: str) -> int:
    """What Check says of a model."""
    request = health_pb2.HealthCheckRequest(service=model_service(model))
    return int((await health_pb2_grpc.HealthStub(gateway.channel).Check(request)).status)


def watch(gateway: RunningGateway, model: str) -> Any:
    """Watch, for a model."""
    request = health_pb2.HealthCheckRequest(service=model_service(model))
    return health_pb2_grpc.HealthStub(gateway.channel).Watch(request)


async def test_a_frozen_engine_process_is_not_serving_and_the_other_model_is(
    server: RunningServer, gateway: RunningGateway, broker: Broker, tmp_path: Path
) -> None:
    """SIGSTOP: its supervisor beats no more. Watchers of each model hear of their own, from unknown to well again."""
    one, other = watch(gateway, "frozen"), watch(gateway, "well")
    assert (await one.read()).status == (await other.read()).status == UNKNOWN
    with worker(server, "frozen", tmp_path) as frozen, worker(server, "well", tmp_path):
        await until_told(one, SERVING)
        await until_told(other, SERVING)
        beat = await beat_of(broker, frozen.pid)
        assert beat is not None
        engine_pid = int(beat.fields["pid"])
        os.kill(engine_pid, signal.SIGSTOP)
        assert (await one.read()).status == NOT_SERVING
        assert await status(gateway, "well") == SERVING
        os.kill(engine_pid, signal.SIGCONT)
        assert (await one.read()).status == SERVING
    assert (await one.read()).status == NOT_SERVING
    assert (await other.read()).status == NOT_SERVING, "the first news in all that time"
    one.cancel()
    other.cancel()


async def test_a_worker_that_beats_for_a_device_that_hangs_is_not_serving(
    server: RunningServer, gateway: RunningGateway, broker: Broker, tmp_path: Path
) -> None:
    """Its engine has work and makes no step, and its supervisor may wait for long; the other model is not touched."""
    patient = {"HERD_WORKER_STUCK_AFTER_S": "600"}
    with worker(server, "hanging", tmp_path, **patient) as hanging, worker(server, "busy", tmp_path):
        told = watch(gateway, "hanging")
        await until_told(told, SERVING)
        await until(lambda: is_serving(gateway, "busy"))
        await submit(broker, make_job([HANG], 5, model="hanging"))
        assert (await told.read()).status == NOT_SERVING
        beat = await beat_of(broker, hanging.pid)
        assert beat is not None
        assert (beat.fields["state"], beat.fields["running"]) == ("ready", "1")
        assert int(beat.fields["device_age_ms"]) > STALE_AFTER_S * 1000
        await until(lambda: beats_on(broker, hanging.pid, beat.beat), what="it goes on beating")
        assert await status(gateway, "busy") == SERVING
        told.cancel()


async def test_an_idle_device_stays_serving(
    server: RunningServer, gateway: RunningGateway, broker: Broker, tmp_path: Path
) -> None:
    """Nobody asks it anything, and its probes keep it fresh: they are later than its last step, again and again."""
    with worker(server, "idle", tmp_path) as idle:
        told = watch(gateway, "idle")
        await until_told(told, SERVING)
        ages: list[int] = []

        async def has_aged_twice() -> bool:
            beat = await beat_of(broker, idle.pid)
            assert beat is not None
            assert beat.fields["steps"] == "0"
            ages.append(int(beat.fields["device_age_ms"]))
            return sum(later < earlier for earlier, later in pairwise(ages)) >= 2

        await until(has_aged_twice)
        assert await status(gateway, "idle") == SERVING
    assert (await told.read()).status == NOT_SERVING, "the first news since it was well"
    told.cancel()


async def until_told(watched: Any, wanted: int) -> None:
    """Read a watch until it says `wanted`."""
    while (await watched.read()).status != wanted:
        pass


async def is_serving(gateway: RunningGateway, model: str) -> bool:
    """Whether Check says SERVING; the model may not be known yet."""
    watched = watch(gateway, model)
    told = (await watched.read()).status
    watched.cancel()
    return bool(told == SERVING)


async def beats_on(broker: Broker, pid: int, last_beat: str) -> bool:
    """Whether the worker has beaten since."""
    beat = await beat_of(broker, pid)
    return beat is not None and int(beat.beat) > int(last_beat)
