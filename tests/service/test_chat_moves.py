"""A conversation that goes on elsewhere: another gateway in mid-turn, another device, a repeated message, a drain."""

import grpc

from contract.broker import Broker
from llamaherd.v1 import chat_pb2, common_pb2
from tests.redis_server import RunningServer
from tests.service.gateways import RunningGateway, error_of, running_gateway
from tests.service.scripted_worker import ScriptedWorker
from tests.service.talks import Talk, answer, handle_of, next_work
from tests.until import until


async def test_another_gateway_goes_on_in_mid_turn(
    valkey: RunningServer, broker: Broker, worker: ScriptedWorker, gateway: RunningGateway
) -> None:
    """With handle, position and chain: the rest of the tokens, each once, then the end."""
    first = Talk(gateway)
    ready = await first.setup()
    await first.say("Count")
    work = await next_work(broker, worker, ready)
    await work.say("1", "2", "3")
    seen = await first.tokens(3)
    first.call.cancel()
    async with running_gateway(valkey.url) as other:
        second = Talk(other)
        again = await second.setup(
            chat_pb2.ChatSetup(resumption_handle=ready.resumption_handle, from_position=2, chain=seen[1].chain)
        )
        assert (again.session_id, again.generation_id) == (ready.session_id, work.generation_id)
        await work.say("4")
        await work.finish()
        rest: list[common_pb2.Token] = []
        await second.event("turn_finished", rest)
        assert [token.position for token in rest] == [2, 3]
        second.call.cancel()


async def test_a_turn_that_ended_unread_is_told_on_resumption(
    broker: Broker, worker: ScriptedWorker, gateway: RunningGateway
) -> None:
    """Nobody was there when it ended; who comes back is given all of it, and the history has it once."""
    first = Talk(gateway)
    ready = await first.setup()
    await first.say("Count")
    work = await next_work(broker, worker, ready)
    first.call.cancel()
    await answer(work, "1", "2")
    second = Talk(gateway)
    await second.setup(chat_pb2.ChatSetup(resumption_handle=ready.resumption_handle))
    tokens: list[common_pb2.Token] = []
    await second.event("turn_finished", tokens)
    assert [token.text for token in tokens] == ["1", "2"]
    await second.say("more")
    await answer(await next_work(broker, worker, ready), "3")
    await second.event("turn_finished")
    view = await broker.chat.join(handle_of(ready), "anonymous")
    assert view is not None
    assert [turn.assistant for turn in view.turns] == ["12", "3"]
    second.call.cancel()


async def test_the_device_that_joined_last_goes_on(
    broker: Broker, worker: ScriptedWorker, gateway: RunningGateway
) -> None:
    """The first one's next message ends its stream with ABORTED; the second is not touched."""
    first, second = Talk(gateway), Talk(gateway)
    ready = await first.setup()
    await second.setup(chat_pb2.ChatSetup(resumption_handle=ready.resumption_handle))
    await first.say("still there?")
    error = await error_of(first.call)
    assert error.code() is grpc.StatusCode.ABORTED
    await second.say("hello")
    await answer(await next_work(broker, worker, ready), "hello")
    await second.event("turn_finished")
    second.call.cancel()


async def test_a_message_repeated_after_a_cut_is_the_same_turn(
    broker: Broker, worker: ScriptedWorker, gateway: RunningGateway
) -> None:
    """Its request_id tells: the client cannot know whether the first one arrived."""
    first = Talk(gateway)
    ready = await first.setup()
    await first.say("Count", request_id="r1")
    work = await next_work(broker, worker, ready)
    await answer(work, "1", "2")
    await first.event("turn_finished")
    first.call.cancel()
    second = Talk(gateway)
    await second.setup(chat_pb2.ChatSetup(resumption_handle=ready.resumption_handle))
    await second.say("Count", request_id="r1")
    tokens: list[common_pb2.Token] = []
    assert (await second.event("turn_finished", tokens)).turn_finished.turn == 0
    assert [token.text for token in tokens] == ["1", "2"]
    second.call.cancel()


async def test_a_draining_gateway_says_where_to_go_on(
    valkey: RunningServer, broker: Broker, worker: ScriptedWorker, gateway: RunningGateway
) -> None:
    """resumption and go_away; the running turn ends, then the stream, with OK; the handle is good elsewhere."""
    async with running_gateway(valkey.url) as leaving:
        await until(lambda: is_known(leaving), what="the gateway sees the worker")
        idle, busy = Talk(leaving), Talk(leaving)
        await idle.setup()
        ready = await busy.setup()
        await busy.say("hello")
        work = await next_work(broker, worker, ready)
        leaving.stop.set()
        for talk in (idle, busy):
            assert (await talk.event("resumption")).resumption.handle == talk.ready.resumption_handle
            assert (await talk.event("go_away")).go_away.time_left.seconds > 0
        assert await idle.call.read() is grpc.aio.EOF
        await answer(work, "bye")
        await busy.event("turn_finished")
        assert await busy.call.read() is grpc.aio.EOF
        assert await busy.call.code() is grpc.StatusCode.OK
    again = Talk(gateway)
    resumed = await again.setup(chat_pb2.ChatSetup(resumption_handle=ready.resumption_handle))
    assert resumed.num_turns == 1
    again.call.cancel()


async def is_known(gateway: RunningGateway) -> bool:
    from tests.service.conftest import is_serving

    return await is_serving(gateway)
