"""What is answered at once is a message that any client takes: gRPC's own bound of 4 MiB would not say what to do."""

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from llamaherd.v1 import common_pb2, generation_pb2
from service.snapshot import MAX_ANSWER_BYTES
from tests.service.gateways import RunningGateway, open_stream
from tests.service.scripted_worker import ScriptedWorker
from tests.service.talks import detail

MEBIBYTE = 1024 * 1024


def violation_of(error: grpc.aio.AioRpcError) -> Any:
    """The one field that is wrong."""
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(error)
    assert status is not None
    (violation,) = detail(status, error_details_pb2.BadRequest).field_violations
    return violation


async def test_a_complete_that_may_grow_too_large_is_refused_at_once(gateway: RunningGateway) -> None:
    """Nothing is computed; the field that costs most is named, and the call that takes it, which does take it."""
    spec = common_pb2.GenerationSpec(
        model="chat",
        prompt="hello",
        sampling=common_pb2.Sampling(n=16),
        stopping=common_pb2.Stopping(max_new_tokens=400),
        output=common_pb2.OutputOptions(top_logprobs=20),
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.stub.Complete(generation_pb2.CompleteRequest(spec=spec))
    violation = violation_of(caught.value)
    assert violation.field == "spec.sampling.n"
    assert violation.description.endswith(f"at most {MAX_ANSWER_BYTES}. Generate streams it")
    call, _ = await open_stream(gateway, generation_pb2.GenerateRequest(spec=spec))
    call.cancel()


async def test_a_generation_that_grew_too_large_is_read_by_attach(
    gateway: RunningGateway, worker: ScriptedWorker
) -> None:
    """GetGeneration says so, and so does a Complete that comes to it by its request_id; Attach reads all of it."""
    spec = common_pb2.GenerationSpec(model="chat", prompt="hello")
    request = generation_pb2.SubmitGenerationRequest(spec=spec, request_id="large")
    generation_id = (await gateway.stub.SubmitGeneration(request)).accepted.generation_id
    work = await worker.take(generation_id)
    for _ in range(3):
        await work.say("x" * MEBIBYTE)
    await work.finish()

    by_id = generation_pb2.GetGenerationRequest(generation_id=generation_id)
    again = generation_pb2.CompleteRequest(spec=spec, request_id="large")
    calls = {"generation_id": gateway.stub.GetGeneration(by_id), "spec": gateway.stub.Complete(again)}
    for field, call in calls.items():
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        violation = violation_of(caught.value)
        assert violation.field == field
        assert violation.description.endswith(f"Attach streams generation {generation_id}")
    read = gateway.stub.Attach(generation_pb2.AttachRequest(generation_id=generation_id))
    assert sum([len(token.text) async for message in read for token in message.tokens]) == 3 * MEBIBYTE
