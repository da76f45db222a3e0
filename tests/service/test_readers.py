"""Readers that are slow, that share a generation, that come back, or that go away."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from contract.broker import Broker, StepRow
from contract.log_pages import PAGE_BYTES
from contract.messages import ChoiceEnd, EndReason, LogEntry, TokenRow
from llamaherd.v1 import generation_pb2
from service.token_stream import MAX_BUFFER_BYTES, TokenStream
from tests.redis_server import RunningServer
from tests.service.conftest import is_serving
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
from tests.service.scripted_worker import ScriptedWorker, Work
from tests.until import until


async def test_a_slow_reader_gets_everything_in_few_messages(gateway: RunningGateway, worker: ScriptedWorker) -> None:
    """What queues up while the client does not read is joined; nothing of it is lost."""
    narrow = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536)]
    async with grpc.aio.insecure_channel(gateway.address, options=narrow) as channel:
        stub = type(gateway.stub)(channel)
        call = stub.Generate(prompt())
        received = Received([await call.read()])
        work = await worker.take(received.generation_id)
        for n in range(200):
            await work.say(*(f"{n}.{m} ".ljust(300, ".") for m in range(20)))
        await work.finish()
        await read_rest(call, received)

    assert received.text == work.text
    assert len(received.messages) < 100, "1.2 MB in 200 rows that came one by one"
    assert all(message.ByteSize() < 4 * 1024 * 1024 for message in received.messages), "clients take that by default"


async def test_the_buffer_of_a_slow_reader_is_bounded(worker: ScriptedWorker, gateway: RunningGateway) -> None:
    """Beyond the bound it is dropped, and read again from the log when the reader comes back."""
    call, received = await open_stream(gateway, prompt())
    work = await worker.take(received.generation_id)
    stream = TokenStream(received.generation_id, "anonymous", work.taken.job, worker.broker.read_log_page, 0.0)
    highest = 0
    for n in range(60):
        row = work.row(*(f"{n}.{m} ".ljust(1000, ".") for m in range(20)))
        await work.broker.step([row])
        stream.offer(as_logged(row), 0.0)
        highest = max(highest, stream.buffered_bytes)
    await work.finish()

    got = Received([])
    while not stream.is_finished:
        bodies = await stream.next_messages()
        assert sum(map(len, bodies)) < 2 * PAGE_BYTES, "1.2 MB are read by the page"
        for body in bodies:
            got.add(type(received.messages[0]).FromString(body))
    call.cancel()

    assert highest < MAX_BUFFER_BYTES + 2**16
    assert got.text == work.text
    assert got.kinds == ["started", "tokens", "choice_finished", "completed"]


def as_logged(row: StepRow) -> LogEntry:
    """The inbox row that a step row becomes."""
    return TokenRow(row.t0, row.t0 + row.num_tokens, row.chain0, row.body)


async def test_two_readers_of_one_request_get_the_same(gateway: RunningGateway, worker: ScriptedWorker) -> None:
    """A second call with the same request_id attaches, with the first call's settings, from the first token on."""
    first, one = await open_stream(gateway, prompt(request_id="twice"))
    work = await worker.take(one.generation_id)
    await work.say("a", "b")
    await read_until(first, one, 2)
    second, two = await open_stream(gateway, prompt(request_id="twice"))
    await work.say("c")
    await work.finish()
    await read_rest(first, one)
    await read_rest(second, two)

    assert two.messages[0] == one.messages[0], "id, prompt tokens and settings, the random seed included"
    assert one.text == two.text == "abc"


async def test_a_client_that_comes_back_in_time_misses_nothing(
    gateway: RunningGateway, worker: ScriptedWorker, broker: Broker
) -> None:
    """With a request_id the generation goes on for a while without a reader."""
    call, received = await open_stream(gateway, prompt(request_id="comes back"))
    work = await worker.take(received.generation_id)
    await work.say("a")
    await read_until(call, received, 1)
    call.cancel()
    reply = await work.say("b")
    assert not reply.cancel
    again, both = await open_stream(gateway, prompt(request_id="comes back"))
    await work.say("c")
    await work.finish()
    await read_rest(again, both)

    assert both.generation_id == received.generation_id
    assert both.text == "abc"


async def test_a_finished_generation_is_read_again_by_its_request_id(
    gateway: RunningGateway, worker: ScriptedWorker
) -> None:
    """The same stream, from the log alone."""
    call, first = await open_stream(gateway, prompt(request_id="again"))
    work = await worker.take(first.generation_id)
    await work.say("a")
    await work.say("b")
    await work.finish()
    await read_rest(call, first)
    call, second = await open_stream(gateway, prompt(request_id="again"))
    await read_rest(call, second)

    assert second.text == first.text
    assert second.messages[-1] == first.messages[-1]
    assert second.kinds == first.kinds


async def test_a_client_that_vanishes_cancels_what_waits(gateway: RunningGateway, broker: Broker) -> None:
    """Without a request_id nobody can come back: the generation ends at once."""
    call, received = await open_stream(gateway, prompt())
    call.cancel()

    async def is_cancelled() -> bool:
        return (await broker.record(received.generation_id, caller="anonymous")).reason is EndReason.CANCELLED

    await until(is_cancelled)


async def test_a_client_that_vanishes_cancels_what_runs(gateway: RunningGateway, worker: ScriptedWorker) -> None:
    """The worker hears of it with its next step."""
    call, received = await open_stream(gateway, prompt())
    work = await worker.take(received.generation_id)
    await work.say("a")
    await read_until(call, received, 1)
    call.cancel()

    await until(lambda: hears_cancel(work))
    await work.finish(EndReason.CANCELLED, [ChoiceEnd(0, "CANCELLED", len(work.tokens))])


async def test_a_refused_call_does_not_keep_what_another_left(gateway: RunningGateway, worker: ScriptedWorker) -> None:
    """While the last reader leaves, another body under the same request_id is refused; the generation ends still."""
    first, other = prompt("one", request_id="left alone"), prompt("two", request_id="left alone")
    first.spec.resume_window_ms = other.spec.resume_window_ms = 0
    call, received = await open_stream(gateway, first)
    work = await worker.take(received.generation_id)
    call.cancel()
    error = await error_of(gateway.stub.Generate(other))

    assert error.code() is grpc.StatusCode.ALREADY_EXISTS
    await until(lambda: hears_cancel(work))
    await work.finish(EndReason.CANCELLED)


async def test_a_slow_client_that_vanishes_cancels_too(gateway: RunningGateway, worker: ScriptedWorker) -> None:
    """It is gone while a write waits for it."""
    channel = grpc.aio.insecure_channel(gateway.address, options=[("grpc.use_local_subchannel_pool", 1)])
    stub = type(gateway.stub)(channel)
    call = stub.Generate(prompt())
    generation_id = (await call.read()).accepted.generation_id
    work = await worker.take(generation_id)
    for n in range(100):
        await work.say(*(f"{n}.{m} ".ljust(500, ".") for m in range(20)))
    await channel.close()

    await until(lambda: hears_cancel(work))
    await work.finish(EndReason.CANCELLED, [ChoiceEnd(0, "CANCELLED", len(work.tokens))])


async def test_a_complete_that_is_given_up_cancels_too(gateway: RunningGateway, worker: ScriptedWorker) -> None:
    """The unary call leaves as a stream does; with a window of 0 even a request_id does not keep it."""
    request = generation_pb2.CompleteRequest(spec=prompt("give up").spec, request_id="given up")
    request.spec.resume_window_ms = 0
    call = gateway.stub.Complete(request)
    stream = gateway.stub.Generate(generation_pb2.GenerateRequest(spec=request.spec, request_id="given up"))
    generation_id = (await stream.read()).accepted.generation_id
    work = await worker.take(generation_id)
    stream.cancel()
    assert not (await work.say("a")).cancel, "the other reader is still there"
    call.cancel()

    await until(lambda: hears_cancel(work))
    await work.finish(EndReason.CANCELLED, [ChoiceEnd(0, "CANCELLED", len(work.tokens))])


@pytest.fixture
async def fresh(valkey: RunningServer, worker: ScriptedWorker) -> AsyncIterator[RunningGateway]:
    """A gateway that has measured no drain yet, so it refuses no deadline as too short."""
    async with running_gateway(valkey.url) as gateway:
        await until(lambda: is_serving(gateway), what="the gateway sees the worker")
        yield gateway


async def test_an_rpc_deadline_ends_the_stream_and_the_generation(
    fresh: RunningGateway, worker: ScriptedWorker
) -> None:
    """DEADLINE_EXCEEDED, and the worker is told to stop."""
    call, received = await open_stream(fresh, prompt(), timeout_s=3.0)
    work = await worker.take(received.generation_id)
    await work.say("a")
    error = await error_of(call, received)

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert received.text == "a"
    await until(lambda: hears_cancel(work))
    await work.finish(EndReason.CANCELLED)


async def test_a_generation_past_its_deadline_is_closed(fresh: RunningGateway, broker: Broker) -> None:
    """Its worker does not, so the gateway does, and the stream ends with the typed error."""
    request = prompt()
    request.spec.stopping.max_time_ms = 1
    call, received = await open_stream(fresh, request)
    error = await error_of(call, received)

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    record = await broker.record(received.generation_id, caller="anonymous")
    assert record.reason is EndReason.DEADLINE


async def test_many_streams_at_once_stay_apart(gateway: RunningGateway, worker: ScriptedWorker) -> None:
    """Sixty streams, tokens of all in every step."""
    streams = [await open_stream(gateway, prompt(f"{n}")) for n in range(60)]
    works = [await worker.take(received.generation_id) for _, received in streams]
    for step in range(10):
        await worker.broker.step([work.row(f"{n}/{step} ") for n, work in enumerate(works)])
    for work in works:
        await work.finish()
    await asyncio.gather(*(read_rest(call, received) for call, received in streams))

    assert [received.text for _, received in streams] == [work.text for work in works]


async def hears_cancel(work: Work) -> bool:
    """Say a token; whether the reply asks to stop."""
    return (await work.say("x")).cancel
