"""A log or a record that cannot be read: its readers are told that it is lost, and no other stream notices."""

from typing import Any

import grpc
import pytest
import redis.asyncio

from contract import keys
from llamaherd.v1 import generation_pb2
from service import relay
from tests.redis_server import RunningServer
from tests.service.error_details import details_of
from tests.service.gateways import RunningGateway, answer_of, error_of, open_stream, prompt, read_rest, read_until
from tests.service.scripted_worker import ScriptedWorker
from tests.until import until


async def damage(url: str, generation_id: str) -> None:
    """The log's second entry, its first tokens, is none."""
    client: Any = redis.asyncio.Redis.from_url(url)
    log = keys.log(generation_id)
    entries = await client.xrange(log)
    await client.delete(log)
    for number, (entry_id, fields) in enumerate(entries):
        await client.xadd(log, {**fields, "c": b"\xff\xff"} if number == 1 else fields, id=entry_id)
    await client.pexpire(log, 600_000)
    await client.aclose()


async def test_a_reader_of_a_damaged_log_gets_data_loss(
    gateway: RunningGateway, worker: ScriptedWorker, valkey: RunningServer
) -> None:
    """With the reason that its clients know; one that has read past the damage goes on, and so do other streams."""
    call, received = await open_stream(gateway, prompt())
    other_call, other = await open_stream(gateway, prompt())
    work, other_work = await worker.take(received.generation_id), await worker.take(other.generation_id)
    await work.say("a", "b")
    await work.say("c")
    await read_until(call, received, 3)
    await damage(valkey.url, received.generation_id)

    attached = gateway.stub.Attach(generation_pb2.AttachRequest(generation_id=received.generation_id))
    error = await error_of(attached)
    assert error.code() is grpc.StatusCode.DATA_LOSS
    assert details_of(error)[0].reason == "LOG_BEHIND"
    at_once = await answer_of(
        gateway.stub.GetGeneration(generation_pb2.GetGenerationRequest(generation_id=received.generation_id))
    )
    assert (at_once.code(), details_of(at_once)[0].reason) == (grpc.StatusCode.DATA_LOSS, "LOG_BEHIND")

    await work.say("d")
    await work.finish()
    await other_work.say("x")
    await other_work.finish()
    await read_rest(call, received)
    await read_rest(other_call, other)
    assert (received.text, other.text) == ("abcd", "x")


async def test_readers_of_an_overwritten_record_get_data_loss(
    gateway: RunningGateway, worker: ScriptedWorker, raw: "redis.asyncio.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that has tokens, the one that waits, and who asks by its id; before a worker sets it aside and after."""
    monkeypatch.setattr(relay, "SILENT_S", 0.05)
    call, received = await open_stream(gateway, prompt())
    other_call, other = await open_stream(gateway, prompt())
    work, other_work = await worker.take(received.generation_id), await worker.take(other.generation_id)
    await work.say("a")
    await read_until(call, received, 1)
    waiting_call, waiting = await open_stream(gateway, prompt())
    for each in (received, waiting):
        await raw.set(keys.record(each.generation_id), "no record", px=600_000)

    for stream, reason in ((call, "LOG_BEHIND"), (waiting_call, "UNREADABLE")):
        error = await error_of(stream)
        assert (error.code(), details_of(error)[0].reason) == (grpc.StatusCode.DATA_LOSS, reason)
    await by_its_id(gateway, waiting.generation_id)
    last_call, last = await open_stream(gateway, prompt())
    last_work = await worker.take(last.generation_id)  # and what was before it in the queue is set aside
    await by_its_id(gateway, waiting.generation_id)

    for each_call, each, each_work in ((other_call, other, other_work), (last_call, last, last_work)):
        await each_work.say("x")
        await each_work.finish()
        await read_rest(each_call, each)
        assert each.text == "x"


async def by_its_id(gateway: RunningGateway, generation_id: str) -> None:
    """Every call that names it."""
    attached = await error_of(gateway.stub.Attach(generation_pb2.AttachRequest(generation_id=generation_id)))
    got = await answer_of(gateway.stub.GetGeneration(generation_pb2.GetGenerationRequest(generation_id=generation_id)))
    cancelled = await answer_of(
        gateway.stub.CancelGeneration(generation_pb2.CancelGenerationRequest(generation_id=generation_id))
    )
    for error in (attached, got, cancelled):
        assert (error.code(), details_of(error)[0].reason) == (grpc.StatusCode.DATA_LOSS, "UNREADABLE")


async def test_an_overwritten_inbox_is_made_anew(
    gateway: RunningGateway, worker: ScriptedWorker, raw: "redis.asyncio.Redis"
) -> None:
    """Streams read their logs meanwhile; nothing is missing."""
    call, received = await open_stream(gateway, prompt())
    work = await worker.take(received.generation_id)
    await work.say("a")
    await read_until(call, received, 1)
    readers: Any = await raw.hget(keys.record(received.generation_id), "readers")
    inbox = keys.inbox(readers.decode())
    await raw.set(inbox, "no inbox", px=600_000)
    await work.say("b")
    await read_until(call, received, 2)

    async def is_anew() -> bool:
        return bool(await raw.type(inbox) == b"stream")

    await until(is_anew)
    await work.say("c")
    await work.finish()
    await read_rest(call, received)
    assert received.text == "abc"
    assert not gateway.ended.done()


async def test_an_overwritten_log_is_data_loss(
    gateway: RunningGateway, worker: ScriptedWorker, raw: "redis.asyncio.Redis"
) -> None:
    """Also for a key of another type."""
    call, received = await open_stream(gateway, prompt())
    work = await worker.take(received.generation_id)
    await work.say("a")
    await read_until(call, received, 1)
    await raw.set(keys.log(received.generation_id), "no log", px=600_000)
    for error in (
        await error_of(gateway.stub.Attach(generation_pb2.AttachRequest(generation_id=received.generation_id))),
        await answer_of(
            gateway.stub.GetGeneration(generation_pb2.GetGenerationRequest(generation_id=received.generation_id))
        ),
    ):
        assert (error.code(), details_of(error)[0].reason) == (grpc.StatusCode.DATA_LOSS, "LOG_BEHIND")
    call.cancel()
