"""A conversation that is damaged in Redis is DATA_LOSS where it is asked for; a damaged turn is lost, and no other."""

from typing import Any

import grpc
import pytest
import redis.asyncio
from google.rpc import error_details_pb2

from contract import keys
from contract.broker import Broker
from llamaherd.v1 import chat_pb2, chat_pb2_grpc
from tests.service.error_details import details_of
from tests.service.gateways import RunningGateway, answer_of, error_of
from tests.service.scripted_worker import ScriptedWorker
from tests.service.talks import Talk, answer, detail, handle_of, next_work
from tests.until import until

DATA_LOSS = grpc.StatusCode.DATA_LOSS


async def one_turn(gateway: RunningGateway, broker: Broker, worker: ScriptedWorker) -> Talk:
    """A conversation of one turn."""
    talk = Talk(gateway)
    await talk.setup()
    await talk.say("My name is Ann.")
    await answer(await next_work(broker, worker, talk.ready), "Hello")
    await talk.event("turn_finished")
    return talk


def reason_of(error: Any) -> str:
    """By its details, where it is DATA_LOSS."""
    assert error.code() is DATA_LOSS
    return str(details_of(error)[0].reason)


@pytest.mark.parametrize("field", ["setup", "first", "a:0", "ttl", ""])
async def test_a_damaged_conversation_is_data_loss(
    gateway: RunningGateway, broker: Broker, worker: ScriptedWorker, raw: "redis.asyncio.Redis", field: str
) -> None:
    """By its handle, in each of the calls that read it; also for a key of another type."""
    talk = await one_turn(gateway, broker, worker)
    chat = keys.chat(handle_of(talk.ready).session_id)
    await (raw.hset(chat, field, b"\xff\xff") if field else raw.set(chat, "no conversation", px=60_000))
    if field != "setup":  # which a stream that stands has read
        await talk.say("hello")
        failed = (await talk.event("turn_failed")).turn_failed.status
        assert failed.code == DATA_LOSS.value[0]
        assert detail(failed, error_details_pb2.ErrorInfo).reason == "UNREADABLE"
    talk.call.cancel()

    resumed = Talk(gateway)
    handle = talk.ready.resumption_handle
    await resumed.call.write(chat_pb2.ChatRequest(setup=chat_pb2.ChatSetup(resumption_handle=handle)))
    assert reason_of(await error_of(resumed.call)) == "UNREADABLE"

    stub = chat_pb2_grpc.ChatServiceStub(gateway.channel)
    message = chat_pb2.UserMessage(content="hello")
    sent = stub.SendTurn(chat_pb2.SendTurnRequest(session_handle=handle, user_message=message))
    assert reason_of(await error_of(sent)) == "UNREADABLE"
    if not field:
        interrupted = await answer_of(stub.Interrupt(chat_pb2.InterruptRequest(session_handle=handle)))
        assert reason_of(interrupted) == "UNREADABLE"
        ended = await answer_of(stub.EndSession(chat_pb2.EndSessionRequest(session_handle=handle)))
        assert reason_of(ended) == "UNREADABLE"


@pytest.mark.parametrize("key_of", [keys.log, keys.record])
async def test_a_turn_that_cannot_be_read_is_lost_alone(
    gateway: RunningGateway, broker: Broker, worker: ScriptedWorker, raw: "redis.asyncio.Redis", key_of: Any
) -> None:
    """Who comes back to it is told; the next turn begins, and the history has all others."""
    talk = await one_turn(gateway, broker, worker)
    await talk.say("Count")
    work = await next_work(broker, worker, talk.ready)
    talk.call.cancel()
    await answer(work, "1")
    await raw.set(key_of(work.generation_id), "something else", px=60_000)

    again = Talk(gateway)
    await again.setup(chat_pb2.ChatSetup(resumption_handle=talk.ready.resumption_handle))
    failed = (await again.event("turn_failed")).turn_failed
    assert (failed.turn, failed.status.code) == (1, DATA_LOSS.value[0])
    await again.say("What is my name?")

    async def next_is_open() -> bool:
        view = await broker.chat.join(handle_of(talk.ready), "anonymous")
        return view is not None and view.open is not None and view.open.number == 2

    await until(next_is_open)
    await answer(await next_work(broker, worker, talk.ready), "Ann")
    await again.event("turn_finished")
    again.call.cancel()
    view = await broker.chat.join(handle_of(talk.ready), "anonymous")
    assert view is not None
    assert [turn.assistant for turn in view.turns] == ["Hello", "Ann"]
