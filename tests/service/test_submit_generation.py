"""SubmitGeneration: start now, read later; GetGeneration tells what there is."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from contract import keys
from contract.broker import Broker
from contract.messages import EndReason
from llamaherd.v1 import common_pb2, generation_pb2
from tests.service.error_details import details_of
from tests.service.gateways import RunningGateway, open_stream, prompt
from tests.service.resumed import attach
from tests.service.scripted_worker import ScriptedWorker
from tests.until import until


def submission(request_id: str | None = None, **spec: Any) -> generation_pb2.SubmitGenerationRequest:
    """A request to start."""
    wanted = common_pb2.GenerationSpec(model="chat", prompt="hello", **spec)
    return generation_pb2.SubmitGenerationRequest(spec=wanted, request_id=request_id)


async def test_a_submitted_generation_runs_without_a_reader(
    gateway: RunningGateway, other: RunningGateway, worker: ScriptedWorker
) -> None:
    """Its text grows in GetGeneration, and anyone attaches later, at another gateway."""
    accepted = (await gateway.stub.SubmitGeneration(submission())).accepted
    ask = generation_pb2.GetGenerationRequest(generation_id=accepted.generation_id)
    assert (await other.stub.GetGeneration(ask)).state == generation_pb2.GENERATION_STATE_QUEUED
    work = await worker.take(accepted.generation_id)
    assert not (await work.say("so ", "far")).cancel
    so_far = await other.stub.GetGeneration(ask)
    await work.say(" so good")
    await work.finish()
    resumed = await attach(other, accepted.generation_id, 1)

    assert (so_far.state, so_far.choices[0].text) == (generation_pb2.GENERATION_STATE_RUNNING, "so far")
    assert not so_far.choices[0].HasField("finished")
    assert resumed.messages[0].accepted == accepted
    assert "".join(token.text for token in resumed.tokens) == "far so good"


async def test_a_submission_is_idempotent(
    gateway: RunningGateway, other: RunningGateway, worker: ScriptedWorker
) -> None:
    """The same request_id gives the same id, seed and settings; Generate finds it too; another body is refused."""
    first = await gateway.stub.SubmitGeneration(submission("once"))
    again = await other.stub.SubmitGeneration(submission("once"))
    call, received = await open_stream(other, prompt(request_id="once"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.stub.SubmitGeneration(submission("once", priority=common_pb2.PRIORITY_LOW))
    call.cancel()

    assert first == again
    assert received.messages[0].accepted == first.accepted
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS


async def test_the_window_of_a_submission_counts_from_now(
    gateway: RunningGateway, worker: ScriptedWorker, broker: Broker
) -> None:
    """Ten minutes unless the request says otherwise; when it has passed the generation ends. 0 is refused."""
    default = (await gateway.stub.SubmitGeneration(submission())).accepted.generation_id
    short = (await gateway.stub.SubmitGeneration(submission(resume_window_ms=1))).accepted.generation_id
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.stub.SubmitGeneration(submission(resume_window_ms=0))
    await worker.take(default)

    async def is_given_up() -> bool:
        return (await broker.record(short, caller="anonymous")).reason is EndReason.CANCELLED

    await until(is_given_up, what="a worker that comes to it drops it")
    assert (await broker.record(default, caller="anonymous")).window_ms == 600_000
    assert details_of(caught.value)[1].field_violations[0].field == "spec.resume_window_ms"


@pytest.mark.parametrize("make", [lambda: keys.new_generation_id(), lambda: "", lambda: "1." + "0" * 32])
async def test_get_and_cancel_of_nothing(gateway: RunningGateway, make: Callable[[], str]) -> None:
    """NOT_FOUND."""
    for ask in (
        gateway.stub.GetGeneration(generation_pb2.GetGenerationRequest(generation_id=make())),
        gateway.stub.CancelGeneration(generation_pb2.CancelGenerationRequest(generation_id=make())),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
