"""Clients that open what they do not use: calls without a request, connections without a call, pings without end."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llamaherd.client import AsyncClient
from llamaherd.v1 import generation_pb2
from service.server import SPARE_RPCS
from tests.redis_server import RunningServer
from tests.service.conftest import is_serving
from tests.service.error_details import details_of
from tests.service.gateways import RunningGateway, error_of, open_stream, prompt, running_gateway
from tests.service.narrow import narrow_channel, say_much
from tests.service.raw_connection import DATA, GOAWAY, NO_SETTINGS, PING, PREFACE, framed_call, raw_connection
from tests.service.scripted_worker import ScriptedWorker, Work
from tests.until import until

CODE = grpc.StatusCode
METHODS = [  # of each form: streaming, unary, bidirectional, and one that is not ours
    "/llamaherd.v1.GenerationService/Generate",
    "/llamaherd.v1.GenerationService/GetGeneration",
    "/llamaherd.v1.ChatService/Chat",
    "/grpc.health.v1.Health/Check",
]


@asynccontextmanager
async def serving(valkey: RunningServer, **settings: Any) -> AsyncIterator[RunningGateway]:
    """A gateway that sees the worker."""
    async with running_gateway(valkey.url, **settings) as gateway:
        await until(lambda: is_serving(gateway), what="the gateway sees the worker")
        yield gateway


def bare_call(channel: grpc.aio.Channel, method: str = METHODS[0]) -> Any:
    """A call of which only the headers are sent."""
    return channel.stream_stream(method)()


async def test_calls_without_a_request_are_ended(valkey: RunningServer, worker: ScriptedWorker) -> None:
    """After a while, with an error of ours; they never had a place among the streams."""
    async with serving(valkey, request_timeout_s=1.0, max_streams=1) as gateway:
        calls = [bare_call(gateway.channel, method) for method in METHODS]
        await asyncio.gather(*(call.wait_for_connection() for call in calls))
        inside, _ = await open_stream(gateway, prompt())
        errors = [await error_of(call) for call in calls]
        inside.cancel()

    told = [(error.code(), details_of(error)[0].reason) for error in errors]
    assert told == [(CODE.DEADLINE_EXCEEDED, "DEADLINE_PASSED")] * len(METHODS)


@pytest.mark.parametrize("method", METHODS)
async def test_a_call_that_ends_before_its_request_is_refused(gateway: RunningGateway, method: str) -> None:
    """It would be left open for ever by gRPC itself."""
    call = bare_call(gateway.channel, method)
    await call.done_writing()
    error = await error_of(call)

    assert (error.code(), details_of(error)[0].reason) == (CODE.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_calls_without_a_request_take_nothing_from_the_others(
    valkey: RunningServer, worker: ScriptedWorker
) -> None:
    """Below the bound of all calls, the next stream is let in, and the one after it refused with a delay."""
    async with serving(valkey, max_streams=1) as gateway, narrow_channel(gateway) as other:
        bare = [bare_call(other) for _ in range(SPARE_RPCS)]
        await asyncio.gather(*(call.wait_for_connection() for call in bare))
        inside, _ = await open_stream(gateway, prompt())
        refused = await error_of(gateway.stub.Generate(prompt()))
        for call in (inside, *bare):
            call.cancel()

    assert (refused.code(), details_of(refused)[0].reason) == (CODE.UNAVAILABLE, "UNAVAILABLE")


async def test_calls_are_bounded_for_a_connection_and_in_all(valkey: RunningServer, worker: ScriptedWorker) -> None:
    """One connection at its bound is in nobody's way; with more at theirs, gRPC refuses, until calls end."""
    check = health_pb2.HealthCheckRequest()
    most = 1 + SPARE_RPCS
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(serving(valkey, max_streams=1))
        channels = [await stack.enter_async_context(narrow_channel(gateway)) for _ in range(3)]
        for channel in channels:
            await health_pb2_grpc.HealthStub(channel).Check(check)  # it knows its bound now
        health = health_pb2_grpc.HealthStub(gateway.channel)
        bare = [bare_call(channels[0]) for _ in range(2 * most)]
        await bare[0].wait_for_connection()
        await health.Check(check)
        bare += [bare_call(channel) for channel in channels[1:] for _ in range(most)]

        async def is_full() -> bool:
            try:
                await health.Check(check)
            except grpc.aio.AioRpcError as error:
                return error.code() is CODE.RESOURCE_EXHAUSTED
            return False

        await until(is_full, what="as many calls are open as may be")
        for call in bare:
            call.cancel()
        await until(lambda: is_serving_again(gateway), what="there is room again")


async def is_serving_again(gateway: RunningGateway) -> bool:
    """Whether health is answered."""
    try:
        return await is_serving(gateway)
    except grpc.aio.AioRpcError as error:
        if error.code() is not CODE.RESOURCE_EXHAUSTED:
            raise
        return False


async def test_a_connection_that_is_never_set_up_is_closed(valkey: RunningServer) -> None:
    """However far it came: without a word, in mid-preface, without settings."""
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(running_gateway(valkey.url, request_timeout_s=0.3))
        silent = [
            await stack.enter_async_context(raw_connection(gateway.address, said))
            for said in (b"", PREFACE[:10], PREFACE)
        ]
        async with asyncio.timeout(20):
            await asyncio.gather(*(connection.frames() for connection in silent))


async def test_a_connection_without_calls_is_closed(valkey: RunningServer) -> None:
    """It is told so first; a gRPC client opens another when it has a call."""
    async with (
        running_gateway(valkey.url, max_connection_idle_s=0.5) as gateway,
        raw_connection(gateway.address, PREFACE + NO_SETTINGS) as connection,
    ):
        frames = await asyncio.wait_for(connection.frames(), 20)
        await health_pb2_grpc.HealthStub(gateway.channel).Check(health_pb2.HealthCheckRequest())

    assert GOAWAY in frames


async def test_connections_are_bounded(valkey: RunningServer) -> None:
    """One too many is closed; when another goes, the next is taken."""
    async with running_gateway(valkey.url, max_connections=1) as gateway:
        async with raw_connection(gateway.address, PREFACE + NO_SETTINGS) as first:
            assert await first.is_answered()
            async with raw_connection(gateway.address, PREFACE + NO_SETTINGS) as second:
                assert not await asyncio.wait_for(second.is_answered(), 20)

        async def is_taken() -> bool:
            async with raw_connection(gateway.address, PREFACE + NO_SETTINGS) as third:
                return await third.is_answered()

        await until(is_taken, what="there is room again")


async def test_a_flood_of_pings_ends_its_connection(gateway: RunningGateway) -> None:
    """ENHANCE_YOUR_CALM; a ping every 4 s is welcome."""
    async with raw_connection(gateway.address, PREFACE + NO_SETTINGS + 10 * PING) as connection:
        frames = await asyncio.wait_for(connection.frames(), 20)

    assert GOAWAY in frames


async def test_an_old_connection_ends_with_what_its_client_never_read(
    valkey: RunningServer, worker: ScriptedWorker
) -> None:
    """The status of a stalled reader waits behind its messages; what holds it ends with the connection at last.

    A client of ours, whose connection ends as well, goes on by another.
    """
    ages = {"max_connection_age_s": 0.6, "connection_grace_s": 0.6}
    async with serving(valkey, write_timeout_s=0.5, **ages) as gateway, asyncio.TaskGroup() as group:
        unread, read = [await submitted(gateway, worker) for _ in range(2)]
        await say_much(unread)
        reading = group.create_task(text_of(gateway, read.generation_id))
        request = generation_pb2.AttachRequest(generation_id=unread.generation_id).SerializeToString()
        attach = framed_call("/llamaherd.v1.GenerationService/Attach", request)
        async with raw_connection(gateway.address, PREFACE + NO_SETTINGS + attach) as connection:
            frames = await asyncio.wait_for(connection.frames(), 20)
        older_s = time.monotonic() + 0.6

        async def is_older() -> bool:
            await read.say("on ")
            return time.monotonic() > older_s

        await until(is_older, what="the other connection has ended too")
        await asyncio.gather(unread.finish(), read.finish())

    assert frames.count(DATA) >= 4, "64 KiB were sent, and no more"
    assert GOAWAY in frames
    assert reading.result() == read.text


async def submitted(gateway: RunningGateway, worker: ScriptedWorker) -> Work:
    """A generation that nobody reads yet."""
    asked = generation_pb2.SubmitGenerationRequest(spec=prompt().spec)
    asked.spec.resume_window_ms = 60_000
    return await worker.take((await gateway.stub.SubmitGeneration(asked)).accepted.generation_id)


async def text_of(gateway: RunningGateway, generation_id: str) -> str:
    """What the Python client reads of it."""
    async with AsyncClient(gateway.address) as client:
        return "".join([delta.text async for delta in client.attach(generation_id)])
