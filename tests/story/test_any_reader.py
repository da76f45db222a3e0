"""One generation, any number of readers: three choices, read at a second gateway from every position."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from llamaherd.v1 import common_pb2, generation_pb2, generation_pb2_grpc
from tests.herd_process import HerdProcess
from tests.service.conftest import is_serving
from tests.service.gateways import RunningGateway, running_gateway
from tests.until import until

NUM_CHOICES = 3
NUM_TOKENS = NUM_CHOICES * 12


@pytest.fixture
async def other(herd_up: HerdProcess) -> AsyncIterator[RunningGateway]:
    """A second gateway on the herd's Redis."""
    async with running_gateway(herd_up.redis_url) as gateway:
        await until(lambda: is_serving(gateway), what="it sees the worker")
        yield gateway


def story() -> common_pb2.GenerationSpec:
    """Three choices drawn at random, which never end by themselves."""
    return common_pb2.GenerationSpec(
        prompt="Once upon a time",
        sampling=common_pb2.Sampling(temperature=1.0, seed=7, n=NUM_CHOICES),
        stopping=common_pb2.Stopping(max_new_tokens=NUM_TOKENS // NUM_CHOICES, ignore_eos=True),
    )


async def read_from(
    gateway: RunningGateway, generation_id: str, position: int
) -> tuple[bytes, dict[int, common_pb2.ChoiceFinished], common_pb2.Completed]:
    """The joined tokens, each choice's end, and the last message."""
    request = generation_pb2.AttachRequest(generation_id=generation_id, from_position=position)
    joined, finishes, last = b"", {}, common_pb2.Completed()
    async for message in gateway.stub.Attach(request):
        match message.WhichOneof("event"):
            case None:
                joined += message.SerializeToString()
            case "choice_finished":
                assert message.choice_finished.choice not in finishes
                finishes[message.choice_finished.choice] = message.choice_finished
            case "completed":
                last = message.completed
    return generation_pb2.AttachResponse.FromString(joined).SerializeToString(), finishes, last


async def test_every_reader_gets_the_same_from_every_position(herd_up: HerdProcess, other: RunningGateway) -> None:
    """Those who come while it is made, ahead of it too, and those who come when it has long ended."""
    async with grpc.aio.insecure_channel(herd_up.address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        call = stub.Generate(generation_pb2.GenerateRequest(spec=story(), request_id="any reader"))
        stream = aiter(call)
        accepted = (await anext(stream)).accepted
        async with asyncio.TaskGroup() as group:
            live = [
                group.create_task(read_from(other, accepted.generation_id, position))
                for position in range(NUM_TOKENS + 1)
            ]
        messages = [message async for message in stream]
    tokens = [token for message in messages for token in message.tokens]
    completed = messages[-1].completed
    finished = [await read_from(other, accepted.generation_id, position) for position in range(NUM_TOKENS + 1)]

    assert [token.position for token in tokens] == list(range(NUM_TOKENS))
    assert {token.choice for token in tokens} == set(range(NUM_CHOICES))
    ends = {m.choice_finished.choice: m.choice_finished for m in messages if m.HasField("choice_finished")}
    for position, at_live, at_finished in zip(range(NUM_TOKENS + 1), (t.result() for t in live), finished, strict=True):
        rest = generation_pb2.AttachResponse(tokens=tokens[position:]).SerializeToString()
        assert at_live == at_finished == (rest, ends, completed)
