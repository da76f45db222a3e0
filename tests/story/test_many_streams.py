"""Many callers at once, and callers that vanish."""

import asyncio

import grpc

from contract.broker import Broker, State
from contract.messages import EndReason
from llamaherd.v1 import common_pb2, generation_pb2, generation_pb2_grpc
from tests.herd_process import HerdProcess
from tests.until import until


def request(text: str, **sampling: float) -> generation_pb2.GenerateRequest:
    """A chat of one message."""
    message = common_pb2.ChatMessage(role=common_pb2.ROLE_USER, content=text)
    spec = common_pb2.GenerationSpec(chat=common_pb2.ChatInput(messages=[message]))
    for name, value in sampling.items():
        setattr(spec.sampling, name, value)
    return generation_pb2.GenerateRequest(spec=spec)


async def answer(stub: generation_pb2_grpc.GenerationServiceStub, ask: generation_pb2.GenerateRequest) -> str:
    """The whole text; fails on a gap, a repeat or a stream without `completed`."""
    text, position, completed = "", 0, False
    async for response in stub.Generate(ask, timeout=100):
        for token in response.tokens:
            assert token.position == position
            position += 1
            text += token.text
        completed = response.HasField("completed")
    assert completed
    return text


async def test_a_hundred_streams_at_once_end_right(herd_up: HerdProcess) -> None:
    """Each of 100 concurrent streams gets the text it gets alone."""
    asks = [request(f"Count to {n}") for n in range(3, 13)]
    async with grpc.aio.insecure_channel(herd_up.address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        alone = [await answer(stub, ask) for ask in asks]

        together = await asyncio.gather(*(answer(stub, asks[n % 10]) for n in range(100)))

    assert together == [alone[n % 10] for n in range(100)]


async def test_a_client_that_vanishes_frees_its_slot(herd_up: HerdProcess) -> None:
    """The channel is torn down in mid-stream: the generation ends as cancelled, long before its last token."""
    long_one = request("Count to one hundred", temperature=0)
    channel = grpc.aio.insecure_channel(herd_up.address)
    call = generation_pb2_grpc.GenerationServiceStub(channel).Generate(long_one)
    generation_id = ""
    async for response in call:
        generation_id = generation_id or response.accepted.generation_id
        if response.tokens:
            break
    await channel.close()

    broker = Broker.connect(herd_up.redis_url)
    try:
        await until(lambda: has_ended(broker, generation_id), timeout_s=20)
        record = await broker.record(generation_id, caller="anonymous")
    finally:
        await broker.close()
    assert record.reason is EndReason.CANCELLED


async def has_ended(broker: Broker, generation_id: str) -> bool:
    """Whether the generation's log is closed."""
    (standing,) = await broker.standings([generation_id])
    return standing is not None and standing.state is State.FINISHED
