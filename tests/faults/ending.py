"""A herd of one gateway whose generations are ended from outside, in every way; brokers for workers in the middle."""

import asyncio
import enum
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import redis.asyncio

from contract import keys
from contract.broker import GRACE_MS, Broker, Delivered, NotTaken, Taken, new_lease
from contract.connection import Client
from contract.messages import EndReason
from llamaherd.v1 import common_pb2, generation_pb2
from tests.redis_server import start_valkey
from tests.service.conftest import is_serving
from tests.service.gateways import Received, RunningGateway, error_of, open_stream, read_rest, running_gateway
from tests.until import until
from tests.worker.double_engine_process import double_bundle
from tests.worker.rig import MODEL

BEAT_S = 0.1
TOLD_WITHIN_S = 30  # or never


class Way(enum.Enum):
    """How a generation is ended from outside."""

    CANCEL = "cancel"  # CancelGeneration; its reader stays
    LEAVE = "leave"  # its last reader goes away, and it has no resume window
    DEADLINE = "deadline"  # its max_time is over; its reader stays


@dataclass(slots=True)
class Asked:
    """A generation and its reader."""

    call: Any
    received: Received

    @property
    def generation_id(self) -> str:
        """From accepted."""
        return self.received.generation_id


@dataclass(frozen=True, slots=True)
class EndingHerd:
    """A server and a gateway. Somebody beats for the model, so that requests are taken; workers come as tests want."""

    redis_url: str
    broker: Broker
    raw: Any
    gateway: RunningGateway

    async def ask(self) -> Asked:
        """A long generation, without resume window."""
        spec = common_pb2.GenerationSpec(
            model=MODEL,
            token_ids=common_pb2.TokenIds(ids=[5, 6]),
            stopping=common_pb2.Stopping(max_new_tokens=1000, max_time_ms=600_000),
        )
        return Asked(*await open_stream(self.gateway, generation_pb2.GenerateRequest(spec=spec)))

    async def end(self, asked: Asked, way: Way, *, since_ms: int = 0) -> None:
        """End it; all that its gateway does for that is done.

        Args:
            since_ms: how long its time is over.
        """
        record = keys.record(asked.generation_id)
        match way:
            case Way.CANCEL:
                request = generation_pb2.CancelGenerationRequest(generation_id=asked.generation_id)
                await self.gateway.stub.CancelGeneration(request)
            case Way.LEAVE:
                asked.call.cancel()

                async def is_left() -> bool:
                    return bool(await self.raw.hget(record, "readers") == b"")

                await until(is_left)
            case Way.DEADLINE:
                await self.raw.hset(record, "deadline", await self.broker.now_ms() - since_ms)

    async def pass_grace(self, asked: Asked) -> None:
        """It was cancelled so long ago that anybody may close it."""
        record = keys.record(asked.generation_id)
        assert int(await self.raw.hget(record, "cancel")) > 0
        await self.raw.hset(record, "cancel", await self.broker.now_ms() - GRACE_MS - 1)

    async def assert_told(self, asked: Asked, way: Way) -> None:
        """The reader's stream ends, if it has not left, and says why."""
        async with asyncio.timeout(TOLD_WITHIN_S):
            match way:
                case Way.CANCEL:
                    received = await read_rest(asked.call, asked.received)
                    reason = received.only("choice_finished").choice_finished.reason
                    assert reason == common_pb2.FINISH_REASON_CANCELLED
                    assert received.only("completed").completed.usage.output_tokens == received.num_tokens
                case Way.DEADLINE:
                    error = await error_of(asked.call, asked.received)
                    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                case Way.LEAVE:
                    await until(lambda: self._is_finished(asked))
        record = await self.broker.record(asked.generation_id, caller="anonymous")
        assert record.reason is (EndReason.DEADLINE if way is Way.DEADLINE else EndReason.CANCELLED)

    async def lose_owner(self) -> None:
        """A worker takes all that waits, and dies; that was noticed."""
        for entry in await self.broker.read_jobs("lost", MODEL, "normal", count=64, block_ms=0):
            await self.broker.take(entry, worker_id="lost", lease=new_lease())
        assert await self.broker.reap("lost", "", MODEL)

    async def _is_finished(self, asked: Asked) -> bool:
        return (await self.broker.record(asked.generation_id, caller="anonymous")).reason is not None


class HoldingBroker(Broker):
    """Holds the take of one generation: before it reaches Redis, or its answer before that reaches the worker.

    Attributes:
        left_ms: the time that every job has left when it is taken; None is its own.
        held: set while it is held, until `go_on` is set.
    """

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.left_ms: int | None = None
        self.held, self.go_on = asyncio.Event(), asyncio.Event()
        self._generation_id = ""
        self._holds_answer = False

    async def take(self, entry: Delivered, *, worker_id: str, lease: str) -> Taken | NotTaken:
        """As the broker, when it may."""
        is_held = entry.generation_id == self._generation_id
        if is_held and not self._holds_answer:
            await self._hold()
        taken = await super().take(entry, worker_id=worker_id, lease=lease)
        if isinstance(taken, Taken) and self.left_ms is not None:
            taken = replace(taken, deadline_ms=taken.now_ms + self.left_ms)
        if is_held and self._holds_answer:
            await self._hold()
        return taken

    async def _hold(self) -> None:
        self.held.set()
        await self.go_on.wait()

    def prepare(self, generation_id: str, *, holds_answer: bool) -> None:
        """Hold this one's."""
        self._generation_id, self._holds_answer = generation_id, holds_answer


class DeafBroker(Broker):
    """Hears no message."""

    def listen(self, *channels: str) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """To a channel on which nobody speaks."""
        return super().listen("silence")


@asynccontextmanager
async def ending_herd() -> AsyncIterator[EndingHerd]:
    """For the length of the block."""
    folder = Path(tempfile.mkdtemp(prefix="herd-"))  # a socket's path is short
    server = start_valkey(folder)
    broker, raw = Broker.connect(server.url), redis.asyncio.Redis.from_url(server.url)
    bundle = double_bundle()
    await broker.announce(MODEL, bundle.digest, bundle.to_bytes())
    beating = asyncio.create_task(_beat(broker))
    try:
        async with running_gateway(server.url) as gateway:
            await until(lambda: is_serving(gateway), what="the gateway sees the model")
            yield EndingHerd(server.url, broker, raw, gateway)
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
        await raw.aclose()
        await broker.close()
        server.kill()
        shutil.rmtree(folder)


async def _beat(broker: Broker) -> None:
    """As a worker that takes nothing."""
    while True:
        await broker.worker_beat("beater", {"model": MODEL, "state": "ready"})
        await asyncio.sleep(BEAT_S)
