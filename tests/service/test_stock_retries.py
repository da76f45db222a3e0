"""A stock gRPC client with the README's service config: refused while the queue is full, served once it drains."""

import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog

from contract.broker import Broker
from llamaherd.v1 import generation_pb2, generation_pb2_grpc
from service.pace import UNMEASURED_PUSHBACK_S
from service.submit import Submitter
from service.validate import Call
from tests.redis_server import RunningServer
from tests.service.bundles import bundle
from tests.service.gateways import RunningGateway, open_stream, prompt, running_gateway
from tests.service.scripted_worker import ScriptedWorker, scripted_worker
from tests.service.test_queues import serves_lone
from tests.until import until

README = Path(__file__).parents[2] / "README.md"


def service_config() -> dict[str, Any]:
    """The one that the README recommends."""
    (block,) = re.findall(r"```json\n(\{\n  \"methodConfig\".*?)```", README.read_text(), flags=re.DOTALL)
    config: dict[str, Any] = json.loads(block)
    return config


@pytest.fixture
async def worker(broker: Broker) -> AsyncIterator[ScriptedWorker]:
    """Of a model that nobody else queues for."""
    async with scripted_worker(broker, {"lone": bundle()}) as worker:
        yield worker


@pytest.fixture
async def full(valkey: RunningServer, worker: ScriptedWorker) -> AsyncIterator[RunningGateway]:
    """A gateway that lets one wait."""
    async with running_gateway(valkey.url, max_gateway_waiting=1) as gateway:
        await until(lambda: serves_lone(gateway), what="it sees the model")
        yield gateway


def stock_stub(address: str) -> tuple[grpc.aio.Channel, generation_pb2_grpc.GenerationServiceStub]:
    """Nothing but grpc and the README."""
    options = [("grpc.service_config", json.dumps(service_config())), ("grpc.use_local_subchannel_pool", 1)]
    channel = grpc.aio.insecure_channel(address, options=options)
    return channel, generation_pb2_grpc.GenerationServiceStub(channel)


@pytest.mark.parametrize("is_stream", [True, False], ids=["Generate", "Complete"])
async def test_a_stock_client_comes_back_when_it_was_told_to(
    full: RunningGateway, worker: ScriptedWorker, *, is_stream: bool
) -> None:
    """It waits as long as the trailer says, not the shorter time of its own policy, and its caller sees no error."""
    first, received = await open_stream(full, prompt(model="lone"))
    channel, stub = stock_stub(full.address)
    request_id = f"stock {is_stream}"
    with structlog.testing.capture_logs() as logs:
        begun_s = time.monotonic()
        spec = prompt(model="lone").spec
        if is_stream:
            call: Any = stub.Generate(generation_pb2.GenerateRequest(spec=spec, request_id=request_id))
        else:
            call = stub.Complete(generation_pb2.CompleteRequest(spec=spec, request_id=request_id))

        def refusals() -> int:
            return sum(log.get("reason") == "OVERLOADED" for log in logs)

        await until(lambda: refusals() > 0 or call.done(), what="the client is refused")
        blocking = await worker.take(received.generation_id, "lone")
        work = await worker.take(generation_of(spec, request_id), "lone")
        waited_s = time.monotonic() - begun_s
        await work.say("served")
        await work.finish()
        if is_stream:
            texts = [token.text async for message in call for token in message.tokens]
        else:
            texts = [(await call).choices[0].text]
        num_refusals = refusals()
    await blocking.finish()
    first.cancel()
    await channel.close()

    assert texts == ["served"]
    assert num_refusals == 1, "by its own policy it would have come back sooner, and not once"
    assert waited_s >= UNMEASURED_PUSHBACK_S * 0.9


def generation_of(spec: Any, request_id: str) -> str:
    """The id of the stock client's request: every gateway derives the same."""
    submitter = Submitter(*(None,) * 5, gateway_id="g", id_key="llamaherd.dev/generation-id")  # type: ignore[arg-type]
    return submitter.generation_id(Call("anonymous", spec, request_id))


def test_the_recommended_policy_is_within_what_grpc_allows() -> None:
    """At most five attempts; every service of ours; only UNAVAILABLE, which says that nothing has begun."""
    (method_config,) = service_config()["methodConfig"]
    names = {name["service"] for name in method_config["name"]}
    policy = method_config["retryPolicy"]

    assert names == {f"llamaherd.v1.{name}Service" for name in ("Generation", "Model", "Chat")}
    assert policy["maxAttempts"] <= 5
    assert policy["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert float(policy["initialBackoff"].removesuffix("s")) * 1.2 < UNMEASURED_PUSHBACK_S
