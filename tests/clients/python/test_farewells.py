"""What a client does about a generation that nobody waits for any more: its deadline, its end, a fork."""

import asyncio
import subprocess
import sys
from typing import Any

import grpc
import pytest

from llamaherd import client as herd
from llamaherd.client.calls import StreamCall, leave_alone
from llamaherd.client.chat import TurnReading
from llamaherd.client.errors import Facts
from llamaherd.client.tries import Targets, Tries
from llamaherd.v1 import chat_pb2, common_pb2, generation_pb2
from tests.clients.python.both import Ask
from tests.clients.python.scripted_gateway import GENERATION_ID, Cut, scripted
from tests.herd_process import ROOT
from tests.until import until


@pytest.mark.parametrize("knobs", [{"request_id": "mine"}, {"resume_window_ms": 90_000}])
async def test_a_caller_that_may_come_back_finds_its_generation(ask: Ask, knobs: Any) -> None:
    """A request_id or a resume window of its own says so: the deadline ends only the call."""
    async with scripted("text", cuts=[Cut(4, stall=True)]) as gateway:
        read = await ask([gateway.address], lambda client: client.generate("count", timeout_s=0.5, **knobs))

    assert isinstance(read.error, herd.DeadlineExceeded)
    assert gateway.cancelled == []


async def test_a_deadline_before_accepted_finds_the_generation_by_its_request_id(ask: Ask) -> None:
    """It may stand already, though its id has not come."""
    async with scripted("text", cuts=[Cut(0, stall=True)]) as gateway:
        read = await ask([gateway.address], lambda client: client.generate("count", timeout_s=0.5))

    assert isinstance(read.error, herd.DeadlineExceeded)
    assert gateway.submitted == [read.facts.request_id]
    assert gateway.cancelled == [GENERATION_ID]


async def test_an_answer_that_came_too_late_is_cancelled() -> None:
    """`complete` knows no id; its request_id finds the generation."""
    async with scripted("text") as gateway:

        def complete(**arguments: Any) -> None:
            with herd.Client(gateway.address) as client, pytest.raises(herd.DeadlineExceeded):
                client.complete("count", timeout_s=0.5, **arguments)

        await asyncio.to_thread(complete)
        async with herd.AsyncClient(gateway.address) as client:
            with pytest.raises(herd.DeadlineExceeded):
                await client.complete("count", timeout_s=0.5)
        asked = [request for request in gateway.requests if isinstance(request, generation_pb2.CompleteRequest)]
        assert gateway.submitted == [request.request_id for request in asked]
        assert gateway.cancelled == [GENERATION_ID] * 2

        await asyncio.to_thread(complete, request_id="mine")
        assert gateway.cancelled == [GENERATION_ID] * 2


async def test_a_cancelled_task_cancels_what_it_awaited() -> None:
    """As one that reads a stream does."""
    async with scripted("text") as gateway:
        async with herd.AsyncClient(gateway.address) as client:
            task = asyncio.create_task(client.complete("count"))
            await until(lambda: gateway.requests)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert gateway.cancelled == [GENERATION_ID]


async def test_the_client_s_end_leaves_its_streams() -> None:
    """Also one that nobody iterates at the moment; going on with it afterwards is an error, not a short text."""
    async with scripted("text", cuts=[Cut(5, stall=True), Cut(5, stall=True)]) as gateway:

        def read() -> None:
            with herd.Client(gateway.address) as client:
                deltas = iter(client.generate("count"))
                assert next(deltas).text == "t"
            with pytest.raises(herd.Cancelled):
                "".join(delta.text for delta in deltas)

        await asyncio.to_thread(read)
        assert gateway.cancelled == [GENERATION_ID]

        async with herd.AsyncClient(gateway.address) as client:
            deltas = aiter(client.generate("count"))
            assert (await anext(deltas)).text == "t"
        with pytest.raises(herd.Cancelled):
            "".join([delta.text async for delta in deltas])
        assert gateway.cancelled == [GENERATION_ID] * 2


async def test_whoever_reads_when_the_client_ends_is_told() -> None:
    """In another thread or task, waiting for a token that does not come."""
    async with scripted("text", cuts=[Cut(5, stall=True), Cut(5, stall=True)]) as gateway:
        client = herd.Client(gateway.address)
        reading = asyncio.create_task(asyncio.to_thread(lambda: list(client.generate("count"))))
        await until(lambda: client._streams and next(iter(client._streams)).position == 2)
        await asyncio.to_thread(client.close)
        with pytest.raises(herd.Cancelled):
            await reading

        aclient = herd.AsyncClient(gateway.address)
        stream = aclient.generate("count")

        async def read() -> None:
            async for _ in stream:
                pass

        task = asyncio.create_task(read())
        await until(lambda: stream.position == 2)
        await aclient.close()
        with pytest.raises(herd.Cancelled):
            await task
        assert gateway.cancelled == [GENERATION_ID] * 2


async def test_the_client_s_end_ends_what_is_awaited() -> None:
    """In another thread or task; unless its caller may come back."""
    async with scripted("text") as gateway:
        client = herd.Client(gateway.address)
        waiting = [
            asyncio.create_task(asyncio.to_thread(client.complete, "count", request_id=request_id))
            for request_id in (None, "mine")
        ]
        await until(lambda: len(gateway.requests) == 2)
        await asyncio.to_thread(client.close)
        for task in waiting:
            with pytest.raises(herd.Cancelled):
                await task
        assert gateway.cancelled == [GENERATION_ID]

        aclient = herd.AsyncClient(gateway.address)
        task = asyncio.create_task(aclient.complete("count"))
        await until(lambda: len(gateway.requests) == 3)
        await aclient.close()
        with pytest.raises(herd.Cancelled):
            await task
        assert gateway.cancelled == [GENERATION_ID] * 2


def test_a_turn_that_is_given_up_is_interrupted_once_it_is_known() -> None:
    """Its next attempt would come after the deadline; before, whatever runs may be another's turn."""
    tries = Tries(Targets(1), timeout_s=40.0, patience_s=60.0)
    reading = TurnReading("handle", chat_pb2.UserMessage(content="Hello"), None)
    call = StreamCall(reading, 40.0, leave_alone)
    later = herd.ConnectionBroken("gone", grpc.StatusCode.UNAVAILABLE, Facts(retry_after_s=50.0))
    with pytest.raises(herd.ConnectionBroken):
        tries.failed(later)

    assert not call.ends(later, tries)
    reading.read(chat_pb2.SendTurnResponse(queued=common_pb2.Queued()).SerializeToString())
    assert call.ends(later, tries)


FORK = """
import os
from llamaherd.client import Client
used = Client("127.0.0.1:1", patience_s=0)
def outcome(client):
    try:
        client.model()
    except Exception as error:
        return type(error).__name__
print(outcome(used), flush=True)
if os.fork() == 0:
    with used:
        print(outcome(used), flush=True)
    os._exit(0)
os.wait()
"""


def test_a_fork_is_told_apart() -> None:
    """gRPC's threads stay in the parent, and a call in the child would hang for ever."""
    done = subprocess.run([sys.executable, "-c", FORK], cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.stdout.split() == ["ConnectionBroken", "RuntimeError"], done.stderr
