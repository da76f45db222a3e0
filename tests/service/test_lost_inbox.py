"""A gateway loses its inbox: while it is frozen, or so that the one answer which tells of it is lost."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis.asyncio

from contract import keys
from contract.messages import ChoiceEnd, EndReason
from llamaherd.v1 import common_pb2, generation_pb2, generation_pb2_grpc
from service import relay
from tests.clients.python.gateway_processes import GatewayProcess, gateway_processes
from tests.redis_server import RunningServer
from tests.service.conftest import is_serving
from tests.service.gateways import (
    Received,
    RunningGateway,
    open_stream,
    prompt,
    read_rest,
    read_until,
    running_gateway,
)
from tests.service.redis_cable import redis_cable
from tests.service.scripted_worker import ScriptedWorker, Work
from tests.until import until

ORPHAN_GRACE_MS = 15_000


@pytest.fixture(scope="module")
async def sleeper(
    valkey: RunningServer, worker: ScriptedWorker, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[GatewayProcess]:
    """A gateway that is a process of its own."""
    async with gateway_processes(valkey.url, 1, tmp_path_factory.mktemp("sleeper")) as [gateway]:
        yield gateway


@pytest.fixture
async def channel(sleeper: GatewayProcess) -> AsyncIterator[grpc.aio.Channel]:
    """To it, by a client that never pings: it waits for as long as the gateway sleeps."""
    async with grpc.aio.insecure_channel(sleeper.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


async def begin(
    channel: grpc.aio.Channel, worker: ScriptedWorker, request_id: str | None = None
) -> tuple[Any, Received, Work]:
    """A stream that has had its first token, and its job."""
    call = generation_pb2_grpc.GenerationServiceStub(channel).Generate(prompt(request_id=request_id))
    received = Received([])
    received.add(await call.read())
    work = await worker.take(received.generation_id)
    await work.say("a")
    await read_until(call, received, 1)
    return call, received, work


async def fall_asleep(gateway: GatewayProcess, raw: "redis.asyncio.Redis") -> None:
    """Frozen for so long that its inbox, and its heartbeat, have expired."""
    gateway.send(signal.SIGSTOP)
    await until(lambda: is_stopped(gateway.pid))
    await raw.ping()  # Redis has carried out what the gateway had sent: a last beat would make the inbox anew
    await raw.delete(keys.inbox(gateway.gateway_id), keys.gateway(gateway.gateway_id))


def is_stopped(pid: int) -> bool:
    """Whether every thread of the process stands still."""
    states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) == {"T"}


async def test_a_gateway_that_slept_beyond_its_inbox_gives_each_token_once(
    sleeper: GatewayProcess, channel: grpc.aio.Channel, worker: ScriptedWorker, raw: "redis.asyncio.Redis"
) -> None:
    """Streams whose tokens came meanwhile, whose end came meanwhile, and that only go on later: nobody notices."""
    heard, ended, quiet = [await begin(channel, worker) for _ in range(3)]
    await fall_asleep(sleeper, raw)
    assert not (await heard[2].say("b", "c")).cancel
    await ended[2].say("b", "c")
    await ended[2].finish()
    sleeper.send(signal.SIGCONT)
    await until(lambda: raw.exists(keys.inbox(sleeper.gateway_id)), what="it has an inbox again")
    for _, _, work in (heard, quiet):
        await work.say("d")
        assert await raw.hget(keys.record(work.generation_id), "unread_since") == b"", "it is read again"
        await work.finish()
    for call, received, work in (heard, ended, quiet):
        await read_rest(call, received)
        assert received.text == work.text
        assert received.kinds == ["accepted", "started", "tokens", "choice_finished", "completed"]


async def test_a_gateway_that_slept_too_long_tells_that_it_was_given_up(
    sleeper: GatewayProcess, channel: grpc.aio.Channel, worker: ScriptedWorker, raw: "redis.asyncio.Redis"
) -> None:
    """Nobody had read for longer than the grace: its reader gets every token up to there, and CANCELLED."""
    call, received, work = await begin(channel, worker)
    await fall_asleep(sleeper, raw)
    await work.say("b")
    unread_since = int(await raw.hget(keys.record(work.generation_id), "unread_since") or 0)
    assert unread_since
    await raw.hset(keys.record(work.generation_id), "unread_since", str(unread_since - ORPHAN_GRACE_MS - 1))
    assert (await work.say("c")).cancel
    await work.finish(EndReason.CANCELLED, [ChoiceEnd(0, "CANCELLED", 3)])
    sleeper.send(signal.SIGCONT)
    await read_rest(call, received)

    assert received.text == work.text == "abc"
    assert received.only("choice_finished").choice_finished.reason == common_pb2.FINISH_REASON_CANCELLED


async def test_a_gateway_that_wakes_leaves_those_alone_that_have_moved(
    sleeper: GatewayProcess,
    channel: grpc.aio.Channel,
    worker: ScriptedWorker,
    gateway: RunningGateway,
    raw: "redis.asyncio.Redis",
) -> None:
    """Its client went on elsewhere, with no window to spare: that the sleeper leaves at last cancels nothing."""
    call, received, work = await begin(channel, worker)
    await fall_asleep(sleeper, raw)
    await work.say("b")
    place = generation_pb2.AttachRequest(generation_id=work.generation_id, from_position=1)
    place.chain = received.messages[-1].tokens[0].chain
    again = gateway.stub.Attach(place)
    await again.read()
    call.cancel()
    sleeper.send(signal.SIGCONT)

    async def readers() -> str:
        found: Any = await raw.hget(keys.record(work.generation_id), "readers")
        return str(found.decode())

    async def has_left() -> bool:
        return sleeper.gateway_id not in await readers()

    await until(has_left, what="the sleeper has left")
    assert await readers() != ""
    assert not (await work.say("c")).cancel
    await work.finish()
    rest = []
    while (message := await again.read()) is not grpc.aio.EOF:
        rest += [token.text for token in message.tokens]
    assert received.text + "".join(rest) == work.text == "abc"


async def test_a_beat_whose_answer_is_lost_is_told_again(
    valkey: RunningServer, worker: ScriptedWorker, raw: "redis.asyncio.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inbox is made anew, and the connection is cut before the gateway hears of it; the next beat says the same.

    Nothing else could tell: no row follows the one that was lost, and silence is not looked into here.
    """
    monkeypatch.setattr(relay, "SILENT_S", float("inf"))
    path = valkey.path.with_name("cut.sock")
    async with (
        redis_cable(valkey.path, path, "gateway_beat") as cable,
        running_gateway(f"unix://{path}") as gateway,
    ):
        await until(lambda: is_serving(gateway), what="the gateway sees the worker")
        call, received = await open_stream(gateway, prompt())
        work = await worker.take(received.generation_id)
        await work.say("a")
        await read_until(call, received, 1)
        cable.hold()
        await until(lambda: cable.num_held, what="a beat is on its way")
        reader: Any = await raw.hget(keys.record(work.generation_id), "readers")
        await raw.delete(keys.inbox(reader.decode()))
        await work.say("b")
        cable.let_go(num_lost=1)
        async with asyncio.timeout(30):
            await read_until(call, received, 2)
        assert cable.num_lost == 1
        await work.finish()
        await read_rest(call, received)
    assert received.text == work.text == "ab"
