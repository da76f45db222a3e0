"""A token log that cannot be read: its readers are told that it is lost, and no other stream notices."""

from typing import Any

import grpc
import redis.asyncio

from contract import keys
from llamaherd.v1 import generation_pb2
from tests.redis_server import RunningServer
from tests.service.error_details import details_of
from tests.service.gateways import RunningGateway, answer_of, error_of, open_stream, prompt, read_rest, read_until
from tests.service.scripted_worker import ScriptedWorker


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
