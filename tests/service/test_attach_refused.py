"""Attach where it cannot go on, or must wait; each reader is told what became of its generation."""

import grpc
import pytest
import redis.asyncio

from contract import keys
from contract.broker import Broker
from contract.messages import EndReason
from tests.service.error_details import details_of
from tests.service.gateways import RunningGateway, open_stream, prompt, read_rest, read_until
from tests.service.resumed import attach_error, attaching, begin, read_all, read_tokens
from tests.service.scripted_worker import ScriptedWorker
from tests.until import until


async def test_a_wrong_chain_is_data_loss(
    gateway: RunningGateway, other: RunningGateway, worker: ScriptedWorker
) -> None:
    """At every position, live and finished: the reader was once given other tokens."""
    call, first, work = await begin(gateway, worker, "wrong chain")
    await work.say("a")
    await work.say("b", "c")
    live = [await attach_error(other, first.generation_id, position, 12345) for position in range(4)]
    await work.finish()
    await read_rest(call, first)
    finished = [await attach_error(other, first.generation_id, position, 12345) for position in range(4)]

    for error in live + finished:
        assert error.code() is grpc.StatusCode.DATA_LOSS
        assert details_of(error)[0].reason == "LOG_BEHIND"


async def test_a_position_beyond_the_end(
    gateway: RunningGateway, other: RunningGateway, worker: ScriptedWorker
) -> None:
    """OUT_OF_RANGE; with a chain, which only who was given those tokens can have, the log has lost them: DATA_LOSS."""
    call, first, work = await begin(gateway, worker, "beyond")
    await work.say("a", "b")
    await work.finish()
    await read_rest(call, first)
    error = await attach_error(other, first.generation_id, 3)
    lost = await attach_error(other, first.generation_id, 3, 12345)

    assert error.code() is grpc.StatusCode.OUT_OF_RANGE
    assert error.details() == "position 3 is beyond the log, which has 2 tokens"
    assert details_of(error)[0].metadata["num_tokens"] == "2"
    assert lost.code() is grpc.StatusCode.DATA_LOSS


async def test_a_reader_ahead_of_a_running_log_waits_and_goes_on(
    gateway: RunningGateway, other: RunningGateway, worker: ScriptedWorker
) -> None:
    """The worker appends again what a lost tail has taken; nothing comes twice."""
    call, first, work = await begin(gateway, worker, "ahead")
    await work.say("a", "b")
    await read_until(call, first, 2)
    reader, resumed = attaching(other, first.generation_id, 4)
    assert (await reader.read()).HasField("accepted")
    for text in "cdef":
        await work.say(text)
    await read_tokens(reader, resumed, 2)
    await work.finish()
    await read_all(reader, resumed)
    call.cancel()

    assert "".join(token.text for token in resumed.tokens) == "ef"


async def test_a_reader_ahead_of_a_log_that_stands_still_is_told(
    gateway: RunningGateway, other: RunningGateway, worker: ScriptedWorker
) -> None:
    """After `resume_wait_s`; the generation goes on for the others."""
    call, first, work = await begin(gateway, worker, "stands still")
    await work.say("a")
    error = await attach_error(other, first.generation_id, 4)
    lost = await attach_error(other, first.generation_id, 4, 12345)
    await work.finish()
    await read_rest(call, first)

    assert error.code() is grpc.StatusCode.OUT_OF_RANGE
    assert lost.code() is grpc.StatusCode.DATA_LOSS
    assert first.text == "a"


async def test_only_its_caller_attaches(other: RunningGateway, broker: Broker, raw: "redis.asyncio.Redis") -> None:
    """Another caller's generation, an unknown id and no id at all look the same; nothing changes."""
    call, first = await open_stream(other, prompt())
    await raw.hset(keys.record(first.generation_id), "caller", "somebody else")
    before = await raw.hgetall(keys.record(first.generation_id))
    for generation_id in (first.generation_id, keys.new_generation_id(), "no id", ""):
        error = await attach_error(other, generation_id)
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert details_of(error)[0].reason == "UNKNOWN_GENERATION"
    assert await raw.hgetall(keys.record(first.generation_id)) == before
    await raw.hset(keys.record(first.generation_id), "caller", "anonymous")
    call.cancel()


async def test_an_error_end_reaches_every_position(
    gateway: RunningGateway, other: RunningGateway, worker: ScriptedWorker
) -> None:
    """What is there comes first, then the status that the first reader got."""
    call, first, work = await begin(gateway, worker, "fails")
    await work.say("a", "b")
    await work.finish(EndReason.FAILED)
    call.cancel()
    for position in range(3):
        reader, resumed = attaching(other, first.generation_id, position)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_all(reader, resumed)
        assert details_of(caught.value)[0].reason == "GENERATION_FAILED"
        assert [token.text for token in resumed.tokens] == ["a", "b"][position:]


async def test_the_last_attached_reader_takes_the_generation_along(
    gateway: RunningGateway, other: RunningGateway, worker: ScriptedWorker
) -> None:
    """An Attach that leaves counts as a stream that leaves."""
    call, first = await open_stream(gateway, prompt())
    work = await worker.take(first.generation_id)
    reader, resumed = attaching(other, first.generation_id)
    assert (await reader.read()).HasField("accepted")
    call.cancel()
    await work.say("a")
    await read_tokens(reader, resumed, 1)
    reader.cancel()

    async def is_told() -> bool:
        return (await work.say("x")).cancel

    await until(is_told, what="the worker hears that nobody reads")
    await work.finish(EndReason.CANCELLED)
