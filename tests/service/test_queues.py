"""What a waiting caller is told, and a refused one: from the drain that was measured, never from a constant."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.broker import Broker, QueueDepth
from contract.errors import DeadlinePassed
from llamaherd.v1 import common_pb2, generation_pb2
from service.models import Models
from service.owned import OwnedCalls
from service.pace import MAX_PUSHBACK_S, UNMEASURED_PUSHBACK_S, Pace, Pushback
from service.queues import Queues
from service.submit import Bounds, Submitter
from service.validate import Call
from tests.contract.rig import make_job
from tests.redis_server import RunningServer
from tests.service.bundles import bundle
from tests.service.error_details import details_of
from tests.service.gateways import RunningGateway, error_of, open_stream, prompt, running_gateway
from tests.service.scripted_worker import ScriptedWorker, scripted_worker
from tests.until import until


def depth(num_new: int, num_delivered: int, num_free: int = 0) -> dict[tuple[str, str], QueueDepth]:
    """One model's look, everything in the normal class."""
    return {("m", "normal"): QueueDepth(num_new, num_free, 0, num_delivered)}


def queues(*looks: tuple[float, int, int]) -> Queues:
    """After looks at (time, waiting, delivered)."""
    made = Queues(None)  # type: ignore[arg-type]  # never asked: the test gives the looks
    for now_s, num_new, num_delivered in looks:
        made.observe(depth(num_new, num_delivered), now_s)
    return made


def test_the_wait_follows_from_what_was_drained() -> None:
    """Ten jobs in two seconds: with nine before it, the next takes two seconds."""
    measured = queues((0.0, 50, 0), (1.0, 45, 5), (2.0, 40, 10))
    assert measured.wait_s("m", 9) == pytest.approx(2.0)


def test_nothing_is_told_while_nothing_is_measured() -> None:
    """Neither before the second look, nor where nobody waited, nor where nothing moved."""
    for looks in ([], [(0.0, 5, 0)], [(0.0, 0, 0), (1.0, 0, 90)], [(0.0, 5, 0), (1.0, 5, 0)]):
        made = queues(*looks)
        assert made.wait_s("m", 3) is None
        assert made.pushback_s("m") == UNMEASURED_PUSHBACK_S


def test_an_idle_queue_measures_nothing() -> None:
    """It drains no faster than jobs arrive, which says nothing of how fast it could."""
    measured = queues((0.0, 50, 0), (1.0, 40, 10), (2.0, 0, 50), (30.0, 0, 51), (60.0, 0, 52))
    assert measured.wait_s("m", 9) == pytest.approx(1.0)


def test_what_was_long_ago_is_forgotten() -> None:
    """A slow hour of yesterday refuses nobody today."""
    assert queues((0.0, 50, 0), (1.0, 40, 10), (2.0, 0, 50), (3600.0, 0, 51)).wait_s("m", 9) is None


def test_the_newest_counts_most() -> None:
    """A herd that lost half of its workers is known to be slower."""
    looks = [(float(t), 1000, 10 * t) for t in range(60)]
    looks += [(60.0 + t, 1000, 590 + 5 * t) for t in range(60)]
    wait_s = queues(*looks).wait_s("m", 0)
    assert wait_s is not None
    assert wait_s == pytest.approx(1 / 5, rel=0.1)


def test_a_stream_that_was_made_anew_is_no_drain() -> None:
    """Its count begins at 0 again."""
    assert queues((0.0, 5, 900), (1.0, 5, 0), (2.0, 5, 0)).wait_s("m", 0) is None


def test_higher_classes_and_what_was_left_behind_go_first() -> None:
    """A job's position counts all that stands before it, in whatever stream."""
    made = Queues(None)  # type: ignore[arg-type]  # never asked
    classes = {"high": (3, 1), "normal": (5, 2), "low": (7, 0)}
    made.observe({("m", name): QueueDepth(new, free, 9, 20) for name, (new, free) in classes.items()}, 0.0)
    assert [made.num_ahead("m", name) for name in classes] == [3 + 3, 3 + 3 + 5, 3 + 3 + 5 + 7]
    assert made.num_ahead("m", "normal", made.num_own_ahead("m", "normal", 22)) == 3 + 3 + 2
    assert made.num_own_ahead("m", "normal", 19) == 0, "it is delivered"
    assert made.num_ahead("unknown", "low") == 0


@given(per_s=st.floats(0.01, 1000), num_callers=st.integers(1, 50))
def test_refused_callers_are_sent_to_different_places(per_s: float, num_callers: int) -> None:
    """One for each place that becomes free, as far as it makes sense to look ahead."""
    pushback = Pushback()
    told = [pushback.take(per_s, 100.0) for _ in range(num_callers)]
    for number, delay_s in enumerate(told, 1):
        assert delay_s == pytest.approx(min(max(0.05, number / per_s), MAX_PUSHBACK_S))
    assert pushback.take(per_s, 1000.0) == pytest.approx(min(max(0.05, 1 / per_s), MAX_PUSHBACK_S)), "all have gone"


def test_a_pace_without_events_is_none() -> None:
    """And with some it is events over time."""
    pace = Pace()
    pace.note(0, 5.0)
    assert pace.per_s is None
    for _ in range(200):
        pace.note(3, 1.0)
    assert pace.per_s == pytest.approx(3.0, rel=0.01)


# --- over a real channel ----------------------------------------------------------------------------------------------


@pytest.fixture
async def lone(broker: Broker, gateway: RunningGateway) -> AsyncIterator[ScriptedWorker]:
    """The only worker of a model that no other test uses."""
    async with scripted_worker(broker, {"lone": bundle()}) as worker:

        async def is_seen() -> bool:
            call = gateway.stub.Generate(prompt(model="lone"))
            try:
                await call.read()
            except grpc.aio.AioRpcError:
                return False
            call.cancel()
            return True

        await until(is_seen, what="the gateway sees the model")
        yield worker


async def take_one(worker: ScriptedWorker) -> None:
    """The next job goes to the worker, and to it alone."""

    async def read() -> bool:
        entries = await worker.broker.read_jobs(worker.worker_ids["lone"], "lone", "normal", count=1, block_ms=20)
        for entry in entries:
            await worker._take(entry, "lone")
        return bool(entries)

    await until(read, what="a job arrives")


async def next_queued(call: Any) -> common_pb2.Queued:
    """The next message, which must be `queued`."""
    message: generation_pb2.GenerateResponse = await call.read()
    assert message.HasField("queued"), message
    return message.queued


async def until_started(call: Any) -> None:
    """Read on while it waits."""
    while (message := await call.read()).HasField("queued"):
        pass
    assert message.HasField("started")


async def test_a_waiting_stream_is_told_how_it_moves_up(gateway: RunningGateway, lone: ScriptedWorker) -> None:
    """Position by position to 0, each told once, with the wait as soon as a drain was measured; then it starts."""
    streams = [await open_stream(gateway, prompt(model="lone")) for _ in range(6)]
    call, received = streams[-1]
    told = [await next_queued(call)]
    first = told[0].position
    assert first >= 5, "those before it, and perhaps the one that looked for the model"
    while told[-1].position > 0 or not any(each.HasField("estimated_wait_ms") for each in told):
        if told[-1].position > 0:
            await take_one(lone)
        told.append(await next_queued(call))
    assert [each.position for each in told] == sorted((each.position for each in told), reverse=True)
    for one, after in itertools.pairwise(told):
        assert one != after
    work = await lone.take(received.generation_id, "lone")
    await until_started(call)
    await work.finish()
    for each, _ in streams:
        each.cancel()


async def test_a_reader_that_attaches_is_told_too(gateway: RunningGateway, lone: ScriptedWorker) -> None:
    """Its place is in the record."""
    first, _ = await open_stream(gateway, prompt(model="lone"))
    second, received = await open_stream(gateway, prompt(model="lone"))
    reader = gateway.stub.Attach(generation_pb2.AttachRequest(generation_id=received.generation_id))
    assert (await reader.read()).HasField("accepted")
    assert (await next_queued(reader)).position >= 1
    for call in (first, second, reader):
        call.cancel()


async def test_tokens_and_jobs_that_wait_at_one_gateway_are_bounded(
    valkey: RunningServer, lone: ScriptedWorker
) -> None:
    """Each by its own bound, whatever the model's queue would take; a job that a worker began waits no more."""
    small = prompt("x", model="lone")
    small.spec.stopping.max_new_tokens = 100
    async with (
        running_gateway(valkey.url, max_gateway_waiting=1) as by_jobs,
        running_gateway(valkey.url, max_gateway_waiting_tokens=150) as by_tokens,
    ):
        for gateway, told in (
            (by_jobs, "1 requests are waiting at this gateway; 1 may wait"),
            (by_tokens, "103 tokens are waiting at this gateway; 150 may wait"),
        ):
            await until(lambda at=gateway: serves_lone(at), what="it sees the model")
            call, received = await open_stream(gateway, small)
            error = await error_of(gateway.stub.Generate(small))
            assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, told)
            assert details_of(error)[0].reason == "OVERLOADED"
            work = await lone.take(received.generation_id, "lone")
            await until_started(call)
            other, _ = await open_stream(gateway, small)
            await work.finish()
            call.cancel()
            other.cancel()


async def serves_lone(gateway: RunningGateway) -> bool:
    """Whether it knows the model by now."""
    error = await error_of(gateway.stub.Generate(prompt("", model="lone")))
    return error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_deadline_that_has_passed_queues_nothing(broker: Broker, worker: ScriptedWorker) -> None:
    """Told so before the job costs anything."""
    models = Models(broker, 60.0, 60.0)
    await models.first_look()
    job = make_job("0." + "5" * 32)
    spec = common_pb2.GenerationSpec(model=job.model, prompt="x")
    async with asyncio.TaskGroup() as group:
        submitter = Submitter(
            *(broker, models, Queues(broker), OwnedCalls(group), Bounds(9, 9999, 9)), gateway_id="g", id_key="k"
        )
        models.live = {job.model: 1}
        with pytest.raises(DeadlinePassed, match="before it was queued"):
            await submitter.submit(Call("anonymous", spec, None, ends_s=0.0), job)
    assert await broker.standings([job.generation_id]) == [None]
