"""Clients that stay connected and read nothing: they lose their place at the gateway, and nothing else."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint

from contract.broker import Broker
from llamaherd.v1 import chat_pb2, chat_pb2_grpc, generation_pb2
from service import metrics
from tests.redis_server import RunningServer
from tests.service.conftest import is_serving
from tests.service.error_details import details_of
from tests.service.gateways import (
    Received,
    RunningGateway,
    error_of,
    open_stream,
    prompt,
    read_rest,
    read_until,
    running_gateway,
)
from tests.service.narrow import has_room, narrow_channel, say_much
from tests.service.scripted_worker import ScriptedWorker
from tests.service.talks import SETUP, next_work, rest_of
from tests.until import until


@pytest.fixture
async def strict(valkey: RunningServer, worker: ScriptedWorker) -> AsyncIterator[RunningGateway]:
    """A gateway with room for one stream, whose patience is short."""
    async with running_gateway(valkey.url, max_streams=1, write_timeout_s=0.5) as gateway:
        await until(lambda: is_serving(gateway), what="the gateway sees the worker")
        yield gateway


@pytest.fixture
def num_stalled(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many were counted."""
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader]).get_meter("test")
    monkeypatch.setattr(metrics, "_stalled_readers", meter.create_counter("stalled"))

    def read() -> int:
        told = reader.get_metrics_data()
        points = (
            [p for r in told.resource_metrics for p in r.scope_metrics[0].metrics[0].data.data_points] if told else []
        )
        return sum(int(point.value) for point in points if isinstance(point, NumberDataPoint))

    return read


async def read_with_room(open_call: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Every message of a call, made again until it is let in."""
    messages: list[Any] = []

    async def is_read() -> bool:
        try:
            messages.extend(await rest_of(await open_call()))
        except grpc.aio.AioRpcError as error:
            if details_of(error)[0].reason != "UNAVAILABLE":
                raise
            return False
        return True

    await until(is_read, what="the call is let in")
    return messages


async def test_a_reader_that_takes_nothing_frees_its_place_and_loses_nothing(
    strict: RunningGateway, worker: ScriptedWorker, num_stalled: Callable[[], int]
) -> None:
    """When it reads again it finds what had left for it, the reason, and by Attach all the rest."""
    async with narrow_channel(strict) as channel:
        call = type(strict.stub)(channel).Generate(prompt(request_id="reads nothing"))
        received = Received([await call.read()])
        work = await worker.take(received.generation_id)
        await say_much(work)
        await until(lambda: has_room(strict), what="its place is free")
        error = await error_of(call, received)

    info, _, retry = details_of(error)
    assert (error.code(), info.reason, retry) == (grpc.StatusCode.ABORTED, "READER_STALLED", None)
    assert error.details() == "the client took no message for 0.5 s"
    assert num_stalled() == 1
    assert 0 < received.num_tokens < len(work.tokens)
    await work.say("the end")
    await work.finish()
    last = [token for message in received.messages for token in message.tokens][-1]

    async def attach() -> Any:
        return strict.stub.Attach(
            generation_pb2.AttachRequest(
                generation_id=received.generation_id, from_position=last.position + 1, chain=last.chain
            )
        )

    for message in await read_with_room(attach):
        received.add(message)
    assert received.text == work.text


@pytest.mark.parametrize("method", ["Chat", "SendTurn"])
async def test_a_turn_that_nobody_reads_goes_on(
    strict: RunningGateway, worker: ScriptedWorker, broker: Broker, num_stalled: Callable[[], int], method: str
) -> None:
    """Its stream is ended, and the whole answer is there for who comes back."""
    message = chat_pb2.UserMessage(content="hello")
    async with narrow_channel(strict) as channel:
        stub = chat_pb2_grpc.ChatServiceStub(channel)
        if method == "SendTurn":
            call = stub.SendTurn(chat_pb2.SendTurnRequest(setup=SETUP, user_message=message))
        else:
            call = stub.Chat()
            await call.write(chat_pb2.ChatRequest(setup=SETUP))
        ready = (await call.read()).ready
        if method == "Chat":
            await call.write(chat_pb2.ChatRequest(user_message=message))
        work = await next_work(broker, worker, ready)
        await say_much(work)
        await until(lambda: has_room(strict), what="its place is free")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rest_of(call)
    await work.finish()

    assert details_of(caught.value)[0].reason == "READER_STALLED"
    assert num_stalled() == 1

    async def attach() -> Any:
        return strict.stub.Attach(generation_pb2.AttachRequest(generation_id=work.generation_id))

    messages = await read_with_room(attach)
    assert "".join(token.text for message in messages for token in message.tokens) == work.text
    assert messages[-1].HasField("completed")


async def test_a_reader_that_waits_is_not_stalled(
    strict: RunningGateway, worker: ScriptedWorker, num_stalled: Callable[[], int]
) -> None:
    """It is not for the reader that nothing comes, however long."""
    call, received = await open_stream(strict, prompt())
    work = await worker.take(received.generation_id)
    await work.say("a")
    await read_until(call, received, 1)
    later_s = time.monotonic() + 1.0
    await until(lambda: time.monotonic() > later_s, what="the gateway's patience has passed twice")
    await work.say("b")
    await work.finish()
    await read_rest(call, received)

    assert (received.text, num_stalled()) == ("ab", 0)
