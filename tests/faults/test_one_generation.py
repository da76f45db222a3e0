"""One generation loses its gateway, then its worker, then its Redis; its client reads one unbroken text."""

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import redis.asyncio

from contract import keys
from llamaherd.client import AsyncClient
from llamaherd.v1 import common_pb2
from tests.faults.chaos.herd import Herd, reserved_ports
from tests.faults.chaos.watch import places
from tests.until import until

ENOUGH = 900  # tokens
A_FEW = 150
EVERY = 40  # tokens between two blows

Blow = Callable[[Herd, str], Awaitable[None]]


@pytest.fixture(scope="module")
async def herd() -> AsyncIterator[Herd]:
    """Two gateways, two workers, a Redis; `keep` starts again what ends."""
    folder = Path(tempfile.mkdtemp(prefix="herd-"))
    with reserved_ports(2) as ports:
        herd = Herd(folder, num_workers=2, num_gateways=2, ports=ports)
        try:
            yield herd
        finally:
            await herd.close()
    shutil.rmtree(folder)


@pytest.fixture
async def client(herd: Herd) -> AsyncIterator[AsyncClient]:
    """A client that knows both gateways, while somebody keeps the herd running."""
    async with asyncio.TaskGroup() as group:
        keeping = group.create_task(herd.keep())
        await until(herd.is_whole, 120)
        async with AsyncClient([f"127.0.0.1:{gateway.port}" for gateway in herd.gateways]) as client:
            yield client
        keeping.cancel()


def wild_spec(seed: int, num_tokens: int) -> common_pb2.GenerationSpec:
    """Almost flat sampling: every token depends on the seed and on all before it."""
    return common_pb2.GenerationSpec(
        model="demo",
        prompt="Once upon a time",
        sampling=common_pb2.Sampling(temperature=20, top_k=1000, seed=seed, repetition_penalty=1.1),
        stopping=common_pb2.Stopping(max_new_tokens=num_tokens, min_new_tokens=num_tokens),
    )


async def kill_gateway(herd: Herd, generation_id: str) -> None:
    """The one at which the client reads."""
    client = redis.asyncio.Redis.from_url(herd.server.url)
    readers = await client.hget(keys.record(generation_id), "readers")
    await client.aclose()
    assert isinstance(readers, bytes)
    names = readers.decode().split(",")
    [pid] = [int(each.fields["pid"]) for each in await herd.broker.gateways() if each.gateway_id in names]
    os.kill(pid, signal.SIGKILL)


async def kill_owner(herd: Herd, generation_id: str) -> None:
    """Supervisor and engine of the worker that makes the tokens."""
    client = redis.asyncio.Redis.from_url(herd.server.url)
    place = (await places(client, [generation_id]))[generation_id]
    await client.aclose()
    [owner] = [each for each in await herd.live_workers() if each.worker_id == place.owner]
    owner.process.child.kill()


async def restart_redis(herd: Herd, _: str) -> None:
    """SIGKILL, and a start over the append-only file."""
    herd.server.kill()
    herd.server.start()


async def test_gateway_then_worker_then_redis(herd: Herd, client: AsyncClient) -> None:
    """Byte for byte the text of an undisturbed run, in one stream."""
    expected = (await client.complete(wild_spec(7, ENOUGH), timeout_s=120)).choices[0].text
    blows: list[Blow] = [kill_gateway, kill_owner, restart_redis]
    text, next_blow_at = "", EVERY
    async with client.generate(wild_spec(7, ENOUGH), timeout_s=240) as stream:
        async for delta in stream:
            text += delta.text
            if blows and stream.position >= next_blow_at:
                await blows.pop(0)(herd, stream.generation_id)
                next_blow_at = stream.position + EVERY
    assert not blows
    assert text == expected
    assert stream.attempts == 2


async def test_a_rolling_restart_shows_nothing(herd: Herd, client: AsyncClient) -> None:
    """Every gateway and every worker is drained and started again, one after another, then Redis, under 4 streams."""
    await until(herd.is_whole, 120)
    expected = [(await client.complete(wild_spec(seed, A_FEW), timeout_s=120)).choices[0].text for seed in range(4)]
    stop = asyncio.Event()

    async def read_for_ever(number: int) -> int:
        num_streams = 0
        while not stop.is_set():
            async with client.generate(wild_spec(number, A_FEW), timeout_s=240) as stream:
                text = "".join([delta.text async for delta in stream])
            assert text == expected[number]
            num_streams += 1
        return num_streams

    async with asyncio.TaskGroup() as group:
        reading = [group.create_task(read_for_ever(number)) for number in range(4)]
        for process in (*herd.gateways, *herd.workers):
            num_starts = process.num_starts
            process.child.send_signal(signal.SIGTERM)
            await until(lambda p=process, n=num_starts: p.num_starts > n, 60, f"{process.name} has drained")
            await until(herd.is_whole, 120)
        await restart_redis(herd, "")
        await until(herd.is_whole, 120)
        stop.set()
    assert all(each.result() for each in reading)
