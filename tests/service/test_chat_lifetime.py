"""How long a conversation lasts, and how much of it a prompt holds: time to live, end, the context's bound."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from contract import keys
from contract.broker import Broker
from llamaherd.v1 import chat_pb2, chat_pb2_grpc
from service.tokenizer import PromptTokenizer
from tests.service.bundles import CONTEXT
from tests.service.gateways import RunningGateway, error_of
from tests.service.scripted_worker import ScriptedWorker
from tests.service.talks import SETUP, Talk, answer, detail, handle_of, next_work
from tests.until import until

HOUR_S = 3600
SHORT_MS = 30_000  # stands for a lifetime that is nearly over; nothing here waits for it


@pytest.fixture
async def talk(gateway: RunningGateway) -> AsyncIterator[Talk]:
    talk = Talk(gateway)
    yield talk
    talk.call.cancel()


@pytest.mark.parametrize(("asked_s", "given_s"), [(None, HOUR_S), (600, 600)])
async def test_each_turn_gives_it_its_whole_lifetime_again(
    raw: Any, broker: Broker, worker: ScriptedWorker, talk: Talk, asked_s: int | None, given_s: int
) -> None:
    """An hour if nobody asks for another: when it is opened, when a turn begins, and when it ends."""
    ready = await talk.setup(chat_pb2.ChatSetup(model="chat", ttl_s=asked_s))
    key = keys.chat(handle_of(ready).session_id)

    async def has_whole_lifetime() -> bool:
        return bool(SHORT_MS < await raw.pttl(key) <= given_s * 1000)

    assert await has_whole_lifetime()
    for turn in range(2):
        await raw.pexpire(key, SHORT_MS)
        await talk.say("hello")
        work = await next_work(broker, worker, ready)
        assert await has_whole_lifetime()
        await raw.pexpire(key, SHORT_MS)
        await answer(work, "hello")
        assert (await talk.event("turn_finished")).turn_finished.turn == turn
        assert await has_whole_lifetime()


async def test_an_expired_session_is_not_found(raw: Any, gateway: RunningGateway, talk: Talk) -> None:
    """By a stream that is open, by setup with its handle, by SendTurn and by Interrupt; typed."""
    handle = (await talk.setup()).resumption_handle
    key = keys.chat(handle_of(talk.ready).session_id)
    await raw.pexpire(key, 1)

    async def is_gone() -> bool:
        return not await raw.exists(key)

    await until(is_gone)
    stub = chat_pb2_grpc.ChatServiceStub(gateway.channel)
    other = Talk(gateway)
    await other.call.write(chat_pb2.ChatRequest(setup=chat_pb2.ChatSetup(resumption_handle=handle)))
    await talk.say("Are you there?")
    message = chat_pb2.UserMessage(content="Are you there?")
    request = chat_pb2.SendTurnRequest(session_handle=handle, user_message=message)
    errors = [await error_of(call) for call in (talk.call, other.call, stub.SendTurn(request))]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Interrupt(chat_pb2.InterruptRequest(session_handle=handle))
    for error in (*errors, caught.value):
        assert error.code() is grpc.StatusCode.NOT_FOUND
        status = rpc_status.from_call(error)
        assert status is not None
        assert detail(status, error_details_pb2.ErrorInfo).reason == "UNKNOWN_SESSION"
        assert "expired" in status.message


async def test_a_conversation_that_outgrows_the_context(broker: Broker, worker: ScriptedWorker, talk: Talk) -> None:
    """The oldest turns are left out whole, as many as it takes and no more; the system prompt never.

    The client is told how many, and so is one that asks for the turn again after its end.
    """
    tokenizer = PromptTokenizer(worker.models["chat"])
    ready = await talk.setup()
    room = CONTEXT - 256  # what is kept for the answer
    said: list[tuple[str, str]] = []
    dropped = [0]
    for turn in range(8):
        user = f"turn {turn} " + "word " * 150
        await talk.say(user, request_id=f"r{turn}")
        work = await next_work(broker, worker, ready)
        await answer(work, "yes " * 40)
        dropped.append((await talk.event("turn_finished")).turn_finished.num_turns_dropped)
        prompt = tokenizer.decode(work.taken.job.prompt_ids)
        assert len(work.taken.job.prompt_ids) <= room
        assert SETUP.system_prompt in prompt
        kept = said[dropped[-1] :]
        assert [text in prompt for text, _ in said] == [pair in kept for pair in said]
        assert prompt.count("yes " * 40) == len(kept)
        if dropped[-1] > dropped[-2]:  # one turn more would not have fitted
            length = len(tokenizer.encode_text("".join(said[dropped[-1] - 1])))
            assert len(work.taken.job.prompt_ids) + length > room - 64  # the format's own tokens
        said.append((user, "yes " * 40))
    assert dropped == sorted(dropped)
    assert dropped[-1] > 0

    again = Talk(talk.gateway)
    await again.setup(chat_pb2.ChatSetup(resumption_handle=ready.resumption_handle))
    await again.say("the same", request_id="r7")
    assert (await again.event("turn_finished")).turn_finished.num_turns_dropped == dropped[-1]
    again.call.cancel()


async def test_a_turn_encodes_each_text_once(
    broker: Broker, worker: ScriptedWorker, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To find out what fits; the job that is queued has the same ids."""
    encoded: list[str] = []
    own = PromptTokenizer.encode_text

    def encode_text(tokenizer: PromptTokenizer, text: str) -> list[int]:
        encoded.append(text)
        return own(tokenizer, text)

    ready = await talk.setup()
    monkeypatch.setattr(PromptTokenizer, "encode_text", encode_text)
    for turn in range(3):
        encoded.clear()
        await talk.say(f"question {turn}")
        work = await next_work(broker, worker, ready)
        assert len(encoded) == len(set(encoded)) == turn + 1
        assert work.taken.job.prompt_ids.count(worker.models["chat"].bos_id) == turn + 1
        await answer(work, f"answer {turn}")
        await talk.event("turn_finished")
