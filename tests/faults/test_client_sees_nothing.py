"""What a gRPC client sees while workers die and freeze under its stream: its text, unbroken."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator

import grpc
import pytest
import redis.asyncio

from contract import keys
from contract.broker import Broker
from llamaherd.v1 import common_pb2, generation_pb2, generation_pb2_grpc
from tests.herd_process import HerdProcess, herd_up
from tests.until import until

ENOUGH = 300  # tokens: the disturbance falls into the middle


@pytest.fixture(scope="module")
def two_workers() -> Iterator[HerdProcess]:
    """A herd with a spare worker; the engines' pace is the CPU's."""
    with herd_up("--device", "cpu", "--workers", "2", "--quantization", "none") as herd:
        yield herd


@pytest.fixture
async def stub(two_workers: HerdProcess) -> AsyncIterator[generation_pb2_grpc.GenerationServiceStub]:
    """A client of that herd."""
    async with grpc.aio.insecure_channel(two_workers.address) as channel:
        yield generation_pb2_grpc.GenerationServiceStub(channel)


@pytest.fixture
async def broker(two_workers: HerdProcess) -> AsyncIterator[Broker]:
    """The herd's Redis, to see who owns what."""
    broker = Broker.connect(two_workers.redis_url)
    yield broker
    await broker.close()


def wild_spec(seed: int) -> common_pb2.GenerationSpec:
    """Almost flat sampling: every token depends on the seed and on all before it."""
    return common_pb2.GenerationSpec(
        prompt="Once upon a time",
        sampling=common_pb2.Sampling(temperature=20, top_k=1000, seed=seed),
        stopping=common_pb2.Stopping(max_new_tokens=ENOUGH),
    )


async def undisturbed(stub: generation_pb2_grpc.GenerationServiceStub) -> tuple[int, str]:
    """A seed that runs to ENOUGH tokens, and its text when nothing happens."""
    for seed in range(100):
        answer = await stub.Complete(generation_pb2.CompleteRequest(spec=wild_spec(seed)), timeout=60)
        if answer.usage.output_tokens == ENOUGH:
            return seed, answer.choices[0].text
    raise AssertionError("no seed runs to the end")


async def stream_through(
    stub: generation_pb2_grpc.GenerationServiceStub, two_workers: HerdProcess, seed: int, disturb: Callable[[str], None]
) -> tuple[str, int]:
    """Stream, and after 20 tokens `disturb` the owner, a worker id. The client's text and the number of attempts."""
    text, position, attempts = "", 0, 0
    generation_id = owner = ""
    async for response in stub.Generate(generation_pb2.GenerateRequest(spec=wild_spec(seed)), timeout=90):
        generation_id = generation_id or response.accepted.generation_id
        for token in response.tokens:
            assert token.position == position, "no gap, no repeat"
            position += 1
            text += token.text
        if position >= 20 and not owner:
            owner = await owner_of(two_workers, generation_id)
            disturb(owner)
        attempts = max(attempts, response.completed.attempts)
    return text, attempts


async def owner_of(herd: HerdProcess, generation_id: str) -> str:
    """The worker id that holds the generation."""
    client = redis.asyncio.Redis.from_url(herd.redis_url)
    try:
        owner = await client.hget(keys.record(generation_id), "owner")
        assert isinstance(owner, bytes)
        return owner.decode()
    finally:
        await client.aclose()


async def both_ready(broker: Broker) -> bool:
    """Whether two workers beat and serve; the record of a dead one stays for a minute at most."""
    return sum(w.fields["state"] == "ready" for w in await broker.pool()) == 2


async def pids_of(broker: Broker) -> dict[str, list[int]]:
    """The process ids of each worker, its engine's first."""
    names = ("pid", "serving_pid", "supervisor_pid")
    return {worker.worker_id: [int(worker.fields[name]) for name in names] for worker in await broker.pool()}


async def test_a_worker_killed_in_mid_stream_leaves_the_text_as_it_was(
    two_workers: HerdProcess, stub: generation_pb2_grpc.GenerationServiceStub, broker: Broker
) -> None:
    """SIGKILL of the engine process that makes the tokens: byte for byte the undisturbed text, in two attempts."""
    seed, expected = await undisturbed(stub)
    pids = await pids_of(broker)

    text, attempts = await stream_through(
        stub, two_workers, seed, lambda owner: os.kill(pids[owner][0], signal.SIGKILL)
    )

    assert text == expected
    assert attempts == 2


async def test_a_worker_frozen_for_five_seconds_and_woken_changes_nothing(
    two_workers: HerdProcess, stub: generation_pb2_grpc.GenerationServiceStub, broker: Broker
) -> None:
    """SIGSTOP of all its processes, SIGCONT after 5 s: another goes on meanwhile, the sleeper appends nothing."""
    await until(lambda: both_ready(broker), 60)
    seed, expected = await undisturbed(stub)
    pids = await pids_of(broker)
    frozen: list[int] = []

    def freeze(owner: str) -> None:
        frozen.extend(pids[owner])
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        asyncio.get_running_loop().call_later(5.0, thaw)

    def thaw() -> None:
        while frozen:
            os.kill(frozen.pop(), signal.SIGCONT)

    text, attempts = await stream_through(stub, two_workers, seed, freeze)
    assert text == expected
    assert attempts == 2
    await until(lambda: not frozen, 20)
    await until(lambda: both_ready(broker), 60)
    assert await undisturbed(stub) == (seed, expected), "the woken worker serves on"
