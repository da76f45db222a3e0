"""Redis goes away and comes back; the gateway goes away: what clients see."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import pytest

from contract import keys
from contract.broker import Broker
from contract.messages import ChoiceEnd, EndReason
from tests.redis_server import RunningServer, start_valkey
from tests.service.bundles import bundle
from tests.service.conftest import is_serving, short_folder
from tests.service.error_details import details_of
from tests.service.gateways import RunningGateway, error_of, open_stream, prompt, read_rest, read_until, running_gateway
from tests.service.scripted_worker import ScriptedWorker, scripted_worker
from tests.until import until


@dataclass(slots=True)
class Herd:
    """A valkey of its own, with a worker."""

    server: RunningServer
    broker: Broker
    worker: ScriptedWorker


@pytest.fixture
async def herd(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Herd]:
    """For tests that break things."""
    server = start_valkey(short_folder(tmp_path_factory))
    broker = Broker.connect(server.url)
    async with scripted_worker(broker, {"chat": bundle()}) as worker:
        yield Herd(server, broker, worker)
    await broker.close()
    server.kill()


async def test_a_stream_outlives_a_restart_of_redis(herd: Herd) -> None:
    """Killed and started over its append-only file: the same stream goes on; meanwhile new requests may retry."""
    async with running_gateway(herd.server.url) as gateway:
        await until(lambda: is_serving(gateway))
        call, received = await open_stream(gateway, prompt())
        work = await herd.worker.take(received.generation_id)
        await work.say("a", "b")
        await read_until(call, received, 2)

        herd.server.kill()
        error = await error_of(gateway.stub.Generate(prompt()))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert details_of(error)[0].reason == "BROKER_DOWN"
        await until(lambda: is_not_serving(gateway))
        herd.server.start()

        await work.say("c")
        await work.say("d")
        await work.finish()
        await read_rest(call, received)
        await until(lambda: is_serving(gateway))

    assert received.text == "abcd"
    assert received.kinds == ["accepted", "started", "tokens", "choice_finished", "completed"]


async def test_an_end_that_came_during_the_outage_is_found(herd: Herd) -> None:
    """The rows were for an inbox that nobody could read."""
    async with running_gateway(herd.server.url) as gateway:
        await until(lambda: is_serving(gateway))
        call, received = await open_stream(gateway, prompt())
        work = await herd.worker.take(received.generation_id)
        herd.server.kill()
        herd.server.start()
        await work.say("a")
        await work.finish()
        await read_rest(call, received)

    assert received.text == "a"


async def test_a_client_that_leaves_during_the_outage_is_not_forgotten(herd: Herd) -> None:
    """The gateway tells Redis when it is back."""
    async with running_gateway(herd.server.url) as gateway:
        await until(lambda: is_serving(gateway))
        call, received = await open_stream(gateway, prompt())
        work = await herd.worker.take(received.generation_id)
        herd.server.kill()
        call.cancel()
        herd.server.start()

        async def hears_cancel() -> bool:
            return (await work.say("x")).cancel

        await until(hears_cancel)
        await work.finish(EndReason.CANCELLED, [ChoiceEnd(0, "CANCELLED", len(work.tokens))])


async def test_a_gateway_waits_for_its_redis(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Started before Redis it serves once that is there."""
    server = start_valkey(short_folder(tmp_path_factory))
    server.kill()

    async def start_later() -> None:
        await asyncio.sleep(0.2)
        server.start()

    starting = asyncio.create_task(start_later())
    async with running_gateway(server.url) as gateway:
        await starting
        assert not await is_serving(gateway), "no worker"
    server.kill()


async def test_a_drain_lets_streams_end_and_takes_no_new_ones(herd: Herd) -> None:
    """NOT_SERVING first; running streams get their tokens; new ones are told to go elsewhere; then the process ends."""
    async with running_gateway(herd.server.url) as gateway:
        await until(lambda: is_serving(gateway))
        call, received = await open_stream(gateway, prompt())
        work = await herd.worker.take(received.generation_id)
        await work.say("a")
        await read_until(call, received, 1)
        gateway.stop.set()
        await until(lambda: is_not_serving(gateway))
        error = await error_of(gateway.stub.Generate(prompt()))
        await work.say("b")
        await work.finish()
        await read_rest(call, received)
        await gateway.ended

    assert details_of(error)[0].reason == "DRAINING"
    assert received.text == "ab"
    left = [key async for key in herd.broker._client.scan_iter(match=f"{keys.TAG}:in:*")]
    assert left == [], "the inbox is gone"


async def test_a_drain_that_takes_too_long_sends_streams_elsewhere(herd: Herd) -> None:
    """UNAVAILABLE with a retry delay; with a request_id another gateway goes on with the same generation."""
    async with running_gateway(herd.server.url, drain_timeout_s=0.2) as gateway:
        await until(lambda: is_serving(gateway))
        call, received = await open_stream(gateway, prompt(request_id="moves"))
        work = await herd.worker.take(received.generation_id)
        await work.say("a")
        await read_until(call, received, 1)
        gateway.stop.set()
        error = await error_of(call, received)
        await gateway.ended
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert details_of(error)[0].reason == "DRAINING"

    async with running_gateway(herd.server.url) as other:
        await until(lambda: is_serving(other))
        call, both = await open_stream(other, prompt(request_id="moves"))
        assert not (await work.say("b")).cancel
        await work.finish()
        await read_rest(call, both)
    assert both.generation_id == received.generation_id
    assert both.text == "ab"


async def test_two_gateways_share_a_generation(herd: Herd) -> None:
    """The same request_id at two gateways is one generation, and both get all of it."""
    async with running_gateway(herd.server.url) as one, running_gateway(herd.server.url) as two:
        await until(lambda: is_serving(one))
        await until(lambda: is_serving(two))
        first, at_one = await open_stream(one, prompt(request_id="shared"))
        second, at_two = await open_stream(two, prompt(request_id="shared"))
        work = await herd.worker.take(at_one.generation_id)
        await work.say("a")
        first.cancel()
        await read_until(second, at_two, 1)
        assert not (await work.say("b")).cancel
        await work.finish()
        await read_rest(second, at_two)

    assert at_two.messages[0] == at_one.messages[0]
    assert at_two.text == "ab"


async def is_not_serving(gateway: RunningGateway) -> bool:
    """Whether the gateway's health is NOT_SERVING."""
    return not await is_serving(gateway)
