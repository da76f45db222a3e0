"""What stands beside Generate: health, reflection, channelz, and the parts of the API that are not served yet."""

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from contract.broker import Broker
from llamaherd.v1 import generation_pb2
from tests.redis_server import start_valkey
from tests.service.bundles import bundle
from tests.service.conftest import short_folder
from tests.service.gateways import RunningGateway, running_gateway
from tests.service.scripted_worker import scripted_worker

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.mark.parametrize(
    ("service", "status"),
    [
        ("", SERVING),
        ("llamaherd.v1.GenerationService", SERVING),
        ("llamaherd.v1.ChatService", SERVING),
        ("llamaherd.v1.ModelService", SERVING),
    ],
)
async def test_health_by_service(gateway: RunningGateway, service: str, status: int) -> None:
    """The whole process and each of its services."""
    stub = health_pb2_grpc.HealthStub(gateway.channel)
    assert (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status == status


async def test_health_of_a_service_that_is_not_here(gateway: RunningGateway) -> None:
    """Check answers NOT_FOUND; Watch says SERVICE_UNKNOWN and stays."""
    stub = health_pb2_grpc.HealthStub(gateway.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="nope"))
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="nope"))
    told = await watch.read()
    watch.cancel()

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert told.status == UNKNOWN


async def test_health_follows_the_workers_and_the_drain(tmp_path_factory: pytest.TempPathFactory) -> None:
    """NOT_SERVING without a worker, SERVING with one, NOT_SERVING when it dies, and while draining."""
    server = start_valkey(short_folder(tmp_path_factory))
    broker = Broker.connect(server.url)
    try:
        async with running_gateway(server.url, dead_after_ms=600) as gateway:
            watch = health_pb2_grpc.HealthStub(gateway.channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == NOT_SERVING
            async with scripted_worker(broker, {"chat": bundle()}) as worker:
                assert (await watch.read()).status == SERVING
                worker.is_beating = False
                assert (await watch.read()).status == NOT_SERVING
                worker.is_beating = True
                assert (await watch.read()).status == SERVING
                gateway.stop.set()
                assert (await watch.read()).status == NOT_SERVING
            watch.cancel()
    finally:
        await broker.close()
        server.kill()


async def test_a_watcher_that_does_not_read_holds_up_nobody(gateway: RunningGateway) -> None:
    """Another is told all the same."""
    stub = health_pb2_grpc.HealthStub(gateway.channel)
    idle = stub.Watch(health_pb2.HealthCheckRequest())
    other = stub.Watch(health_pb2.HealthCheckRequest())
    assert (await other.read()).status == SERVING
    idle.cancel()
    other.cancel()


async def test_reflection_lists_every_service(gateway: RunningGateway) -> None:
    """And knows their files."""
    stub = reflection_pb2_grpc.ServerReflectionStub(gateway.channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="llamaherd.v1.ChatService"),
    ]
    answers = [answer async for answer in stub.ServerReflectionInfo(iter(requests))]

    assert {service.name for service in answers[0].list_services_response.service} == {
        "llamaherd.v1.GenerationService",
        "llamaherd.v1.ChatService",
        "llamaherd.v1.ModelService",
        "grpc.health.v1.Health",
        "grpc.channelz.v1.Channelz",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert answers[1].file_descriptor_response.file_descriptor_proto


async def test_channelz_shows_the_server(gateway: RunningGateway) -> None:
    """Sockets and calls of the process, as grpcdebug reads them."""
    answer = await channelz_pb2_grpc.ChannelzStub(gateway.channel).GetServers(channelz_pb2.GetServersRequest())
    assert answer.server


async def test_a_generation_id_of_another_form_is_unknown(gateway: RunningGateway) -> None:
    """No key is made of it."""
    for generation_id in ("", "0.", "x", "0." + "z" * 32, "1." + "0" * 32, "0:{" + "a" * 4000):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gateway.stub.GetGeneration(generation_pb2.GetGenerationRequest(generation_id=generation_id))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gateway.stub.CancelGeneration(generation_pb2.CancelGenerationRequest(generation_id=generation_id))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
