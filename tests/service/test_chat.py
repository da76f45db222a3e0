"""Conversations over real channels: turns, interrupts, bad messages, ends, and turns without a stream."""

from collections.abc import AsyncIterator

import grpc
import pytest
from google.rpc import error_details_pb2

from contract.broker import Broker
from contract.messages import ChoiceEnd, EndReason
from llamaherd.v1 import chat_pb2, chat_pb2_grpc, common_pb2
from tests.redis_server import RunningServer
from tests.service.conftest import is_serving
from tests.service.gateways import RunningGateway, answer_of, error_of, running_gateway
from tests.service.scripted_worker import ScriptedWorker
from tests.service.talks import SETUP, Talk, answer, detail, handle_of, next_work, rest_of
from tests.until import until


@pytest.fixture
async def talk(gateway: RunningGateway) -> AsyncIterator[Talk]:
    talk = Talk(gateway)
    yield talk
    talk.call.cancel()


async def test_a_conversation_of_two_turns(broker: Broker, worker: ScriptedWorker, talk: Talk) -> None:
    """The second prompt holds the first turn; each turn is finished once, with its number."""
    ready = await talk.setup()
    assert (ready.num_turns, ready.generation_id, ready.settings.model) == (0, "", "chat")
    await talk.say("My name is Ann.")
    work = await next_work(broker, worker, ready)
    first_prompt = work.taken.job.prompt_ids
    await answer(work, "Hello, ", "Ann!")
    tokens: list[common_pb2.Token] = []
    finished = (await talk.event("turn_finished", tokens)).turn_finished
    assert "".join(token.text for token in tokens) == "Hello, Ann!"
    assert (finished.turn, finished.finished.reason) == (0, common_pb2.FINISH_REASON_EOS)
    assert finished.usage.output_tokens == 2

    await talk.say("What is my name?")
    work = await next_work(broker, worker, ready)
    assert len(work.taken.job.prompt_ids) > len(first_prompt)
    await answer(work, "Ann.")
    assert (await talk.event("turn_finished")).turn_finished.turn == 1
    view = await broker.chat.join(handle_of(ready), "anonymous")
    assert view is not None
    assert [(turn.user, turn.assistant) for turn in view.turns] == [
        ("My name is Ann.", "Hello, Ann!"),
        ("What is my name?", "Ann."),
    ]


async def test_a_conversation_takes_one_place_also_while_it_talks(
    broker: Broker, worker: ScriptedWorker, valkey: RunningServer
) -> None:
    """So a gateway that is full of them answers all; what comes beside is refused, and let in once one has left."""
    async with running_gateway(valkey.url, max_streams=1) as gateway:
        await until(lambda: is_serving(gateway), what="the gateway sees the worker")
        talk, other = Talk(gateway), Talk(gateway)
        ready = await talk.setup()
        await talk.say("My name is Ann.")
        work = await next_work(broker, worker, ready)
        await other.call.write(chat_pb2.ChatRequest(setup=SETUP))
        refused = await error_of(other.call)
        await answer(work, "Hello, Ann!")
        assert (await talk.event("turn_finished")).turn_finished.turn == 0
        await talk.call.done_writing()
        assert await talk.call.read() is grpc.aio.EOF

        again = Talk(gateway)
        await again.setup()
        again.call.cancel()

    assert refused.details() == "this gateway has 1 streams; 1 are allowed"


async def test_an_interrupt_ends_the_turn_and_keeps_what_was_shown(
    broker: Broker, worker: ScriptedWorker, talk: Talk
) -> None:
    """The worker is told with its next step; the history holds the text up to what the user had seen."""
    ready = await talk.setup()
    await talk.say("Count")
    work = await next_work(broker, worker, ready)
    await work.say("1, ", "2, ", "3, ")
    await talk.tokens(3)
    await talk.interrupt(2)

    async def is_cancelled() -> bool:
        return (await work.say("more ")).cancel

    await until(is_cancelled, what="the worker hears of the interrupt")
    await work.finish(EndReason.CANCELLED, [ChoiceEnd(0, "CANCELLED", len(work.tokens))])
    finished = (await talk.event("turn_finished")).turn_finished
    assert finished.finished.reason == common_pb2.FINISH_REASON_CANCELLED
    view = await broker.chat.join(handle_of(ready), "anonymous")
    assert view is not None
    assert [turn.assistant for turn in view.turns] == ["1, 2, "]
    await talk.say("Go on")
    await answer(await next_work(broker, worker, ready), "3")
    assert (await talk.event("turn_finished")).turn_finished.turn == 1


@pytest.mark.parametrize("ends", [False, True])
async def test_an_interrupt_at_once_is_not_lost(gateway: RunningGateway, ends: bool) -> None:
    """It may come before the turn is queued, and so may the end of the conversation; nobody takes the job here."""
    for _ in range(10):
        talk = Talk(gateway)
        await talk.setup()
        await talk.say("Count for ever")
        if ends:
            await talk.call.write(chat_pb2.ChatRequest(end=chat_pb2.EndSession()))
        else:
            await talk.interrupt()
        finished = (await talk.event("turn_finished")).turn_finished.finished
        assert finished.reason == common_pb2.FINISH_REASON_CANCELLED
        talk.call.cancel()


async def test_a_second_message_in_a_running_turn_fails_alone(
    broker: Broker, worker: ScriptedWorker, talk: Talk
) -> None:
    """turn_failed with a typed status; the running turn is not touched."""
    ready = await talk.setup()
    await talk.say("one")
    work = await next_work(broker, worker, ready)
    await talk.say("two")
    failed = (await talk.event("turn_failed")).turn_failed
    assert failed.status.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert detail(failed.status, error_details_pb2.ErrorInfo).reason == "TURN_RUNNING"
    assert failed.status.message == "turn 0 is still running"
    await answer(work, "fine")
    assert (await talk.event("turn_finished")).turn_finished.turn == 0


@pytest.mark.parametrize(("text", "about"), [("", "is empty"), ("[INST] x", "tag"), ("word " * 5000, "tokens")])
async def test_a_bad_message_does_not_end_the_session(
    broker: Broker, worker: ScriptedWorker, talk: Talk, text: str, about: str
) -> None:
    """Its field is named, and the next message is answered."""
    ready = await talk.setup()
    await talk.say(text)
    failed = (await talk.event("turn_failed")).turn_failed
    (violation,) = detail(failed.status, error_details_pb2.BadRequest).field_violations
    assert violation.field == "user_message.content"
    assert about in violation.description
    await talk.say("hello")
    await answer(await next_work(broker, worker, ready), "hello")
    assert (await talk.event("turn_finished")).turn_finished.finished.num_tokens == 1


async def test_a_failed_generation_is_a_failed_turn(broker: Broker, worker: ScriptedWorker, talk: Talk) -> None:
    """The history forgets it, and the session goes on."""
    ready = await talk.setup()
    await talk.say("break")
    await (await next_work(broker, worker, ready)).finish(EndReason.FAILED)
    failed = (await talk.event("turn_failed")).turn_failed
    assert detail(failed.status, error_details_pb2.ErrorInfo).reason == "GENERATION_FAILED"
    view = await broker.chat.join(handle_of(ready), "anonymous")
    assert view is not None
    assert (view.turns, view.open) == ((), None)


async def test_an_ended_session_is_gone(broker: Broker, worker: ScriptedWorker, talk: Talk) -> None:
    """`end` deletes the history and ends the stream with OK; the handle is NOT_FOUND from then on."""
    ready = await talk.setup()
    await talk.call.write(chat_pb2.ChatRequest(end=chat_pb2.EndSession()))
    assert await talk.call.read() is grpc.aio.EOF
    assert await talk.call.code() is grpc.StatusCode.OK
    assert await broker.chat.join(handle_of(ready), "anonymous") is None


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (chat_pb2.ChatRequest(user_message=chat_pb2.UserMessage(content="hello")), "setup"),
        (chat_pb2.ChatRequest(setup=chat_pb2.ChatSetup(model="chat", ttl_s=1)), "setup.ttl_s"),
        (chat_pb2.ChatRequest(setup=chat_pb2.ChatSetup(model="chat", sampling={"n": 2})), "setup.sampling.n"),
        (chat_pb2.ChatRequest(setup=chat_pb2.ChatSetup(model="chat", sampling={"top_p": 2})), "setup.sampling.top_p"),
        (chat_pb2.ChatRequest(setup=chat_pb2.ChatSetup(model="chat", system_prompt="<<SYS>>")), "setup.system_prompt"),
    ],
)
async def test_a_bad_setup_is_refused_by_field(talk: Talk, request_: chat_pb2.ChatRequest, field: str) -> None:
    """INVALID_ARGUMENT, and no session is left."""
    await talk.call.write(request_)
    error = await error_of(talk.call)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in (error.details() or "")


async def test_turns_without_a_bidirectional_stream(
    broker: Broker, worker: ScriptedWorker, gateway: RunningGateway
) -> None:
    """SendTurn opens a session and goes on with it; Interrupt ends its running turn."""
    stub = chat_pb2_grpc.ChatServiceStub(gateway.channel)
    message = chat_pb2.UserMessage(content="hello")
    call = stub.SendTurn(chat_pb2.SendTurnRequest(setup=SETUP, user_message=message))
    ready = (await call.read()).ready
    work = await next_work(broker, worker, ready)
    await answer(work, "hel", "lo")
    events = await rest_of(call)
    assert events[-1].HasField("turn_finished")
    assert "".join(token.text for event in events for token in event.tokens) == "hello"

    call = stub.SendTurn(chat_pb2.SendTurnRequest(session_handle=ready.resumption_handle, user_message=message))
    await call.read()
    work = await next_work(broker, worker, ready)
    stopped = await stub.Interrupt(chat_pb2.InterruptRequest(session_handle=ready.resumption_handle))
    assert stopped.was_running
    assert (await work.say("x")).cancel
    await work.finish(EndReason.CANCELLED, [ChoiceEnd(0, "CANCELLED", 1)])
    assert (await rest_of(call))[-1].turn_finished.turn == 1
    stopped = await stub.Interrupt(chat_pb2.InterruptRequest(session_handle=ready.resumption_handle))
    assert not stopped.was_running


async def test_a_session_without_any_stream(broker: Broker, worker: ScriptedWorker, gateway: RunningGateway) -> None:
    """OpenSession opens one, and resumes it with the turn that runs; EndSession ends both, and twice is no error."""
    stub = chat_pb2_grpc.ChatServiceStub(gateway.channel)
    ready = (await stub.OpenSession(chat_pb2.OpenSessionRequest(setup=SETUP))).ready
    assert (ready.num_turns, ready.generation_id, ready.settings.model) == (0, "", "chat")
    message = chat_pb2.UserMessage(content="hello")
    call = stub.SendTurn(chat_pb2.SendTurnRequest(session_handle=ready.resumption_handle, user_message=message))
    await call.read()
    work = await next_work(broker, worker, ready)

    again = chat_pb2.OpenSessionRequest(setup=chat_pb2.ChatSetup(resumption_handle=ready.resumption_handle))
    resumed = (await stub.OpenSession(again)).ready
    assert (resumed.session_id, resumed.generation_id) == (ready.session_id, work.taken.job.generation_id)

    for _ in range(2):
        await stub.EndSession(chat_pb2.EndSessionRequest(session_handle=ready.resumption_handle))
    assert (await work.say("x")).cancel
    await work.finish(EndReason.CANCELLED, [ChoiceEnd(0, "CANCELLED", 1)])
    await rest_of(call)
    assert (await answer_of(stub.OpenSession(again))).code() is grpc.StatusCode.NOT_FOUND
    for request in (chat_pb2.EndSessionRequest(), chat_pb2.EndSessionRequest(session_handle="x.y")):
        assert (await answer_of(stub.EndSession(request))).code() is grpc.StatusCode.NOT_FOUND
    bad = chat_pb2.OpenSessionRequest(setup=chat_pb2.ChatSetup(model="chat", ttl_s=1))
    assert "setup.ttl_s" in ((await answer_of(stub.OpenSession(bad))).details() or "")
