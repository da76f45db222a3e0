"""A cancel and a deadline reach the engine within a step or two, wherever the job is; and its reader is told.

Ended by CancelGeneration, by its last reader's leaving, or by its time; while it is queued, being claimed, running, or
left by a worker that is dead or frozen. A real gateway, the worker's own code, and an engine that counts its steps.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from contract.broker import GRACE_MS, Broker
from contract.messages import EndReason
from llamaherd.v1 import common_pb2
from service import relay
from tests.faults.ending import Asked, DeafBroker, EndingHerd, HoldingBroker, Way, ending_herd
from tests.service.gateways import read_rest
from tests.until import until
from tests.worker.engine_double import EngineDouble, Gate, expected_ids
from tests.worker.rig import (
    MODEL,
    LocalWorker,
    beat_of,
    finished,
    has_tokens,
    is_ready,
    local_worker,
    make_job,
    read,
    submit,
    worker_process,
)
from worker import cancels, reconcile
from worker.engine_link import EngineLink

NUM_OTHER = 3  # tokens of the job that shows that a worker has done all that it wanted
BY_CALLERS = [Way.CANCEL, Way.LEAVE]


@pytest.fixture(scope="module")
async def herd() -> AsyncIterator[EndingHerd]:
    """Shared by all."""
    async with ending_herd() as herd:
        yield herd


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Whether a cancel lies before the engine; the look that a worker takes every second is taken away."""
    seen = asyncio.Event()
    cancel = EngineLink.cancel

    def cancel_seen(thread: EngineLink, generation_id: str) -> None:
        cancel(thread, generation_id)
        seen.set()

    monkeypatch.setattr(EngineLink, "cancel", cancel_seen)
    monkeypatch.setattr(reconcile, "PERIOD_S", 3600.0)
    return seen.is_set


@pytest.fixture
async def holding(herd: EndingHerd) -> AsyncIterator[HoldingBroker]:
    """A broker for a worker that stops in the middle of a claim."""
    broker = HoldingBroker.connect(herd.redis_url)
    yield broker
    await broker.close()


async def assert_not_run(herd: EndingHerd, worker: LocalWorker, asked: Asked, attempts: list[int]) -> None:
    """The worker runs another job to its end, and its engine has made no step but for that."""
    other = await submit(herd.broker, make_job([8], NUM_OTHER))
    assert (await finished(herd.broker, other)).ids == expected_ids([8], NUM_OTHER)
    assert worker.engine.num_steps == NUM_OTHER
    assert (await read(herd.broker, asked.generation_id)).attempts == attempts
    await until(lambda: worker.progress.num_running == 0)


@pytest.mark.parametrize("way", list(Way))
@pytest.mark.parametrize("was_run", [False, True], ids=["new", "free"])
async def test_queued(herd: EndingHerd, way: Way, was_run: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker is needed for the end, be it that one has had it before; one that comes later does not begin."""
    monkeypatch.setattr(relay, "SILENT_S", 0.1)  # after which the gateway looks
    asked = await herd.ask()
    if was_run:
        await herd.lose_owner()
    await herd.end(asked, way, since_ms=GRACE_MS + 1)
    await herd.assert_told(asked, way)
    async with local_worker(herd.broker) as worker:
        await assert_not_run(herd, worker, asked, attempts=[1] if was_run else [])


@pytest.mark.parametrize("way", list(Way))
@pytest.mark.parametrize("was_run", [False, True], ids=["new", "adopted"])
async def test_being_claimed(herd: EndingHerd, holding: HoldingBroker, way: Way, was_run: bool) -> None:
    """The worker has the entry, but no lease yet: it gets none, and its slot stays free."""
    asked = await herd.ask()
    if was_run:
        await herd.lose_owner()
    holding.prepare(asked.generation_id, holds_answer=False)
    async with local_worker(holding) as worker:
        await holding.held.wait()
        await herd.end(asked, way, since_ms=1)  # within the grace: nobody else may end it
        holding.go_on.set()
        await herd.assert_told(asked, way)
        await assert_not_run(herd, worker, asked, attempts=[1] if was_run else [])


@pytest.mark.parametrize("way", BY_CALLERS)
async def test_taken_but_not_yet_known(
    herd: EndingHerd,
    holding: HoldingBroker,
    reached: Callable[[], bool],
    way: Way,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The lease is the worker's, its answer on the way: the nudge comes to a worker that does not hold it yet."""
    asked, gate, nudges = await herd.ask(), Gate(), []
    check = cancels.check_leases

    async def check_noted(*arguments: object) -> None:
        await check(*arguments)  # type: ignore[arg-type]  # passed on as they came
        nudges.append(arguments)

    monkeypatch.setattr(cancels, "check_leases", check_noted)
    holding.prepare(asked.generation_id, holds_answer=True)
    async with local_worker(holding, EngineDouble(gate)) as worker:
        await holding.held.wait()
        await until(lambda: nudges, what="the worker listens")
        nudges.clear()
        await herd.end(asked, way)
        await until(lambda: nudges, what="the nudge came")
        holding.go_on.set()
        await until(reached)
        gate.allow(2)
        await herd.assert_told(asked, way)
        assert worker.engine.num_steps <= 2
    assert len((await read(herd.broker, asked.generation_id)).ids) <= 1


@pytest.mark.parametrize("way", BY_CALLERS)
async def test_running(herd: EndingHerd, reached: Callable[[], bool], way: Way) -> None:
    """The nudge reaches the engine in the middle of a step; the next one ends it."""
    asked, gate = await herd.ask(), Gate(5)
    async with local_worker(herd.broker, EngineDouble(gate)) as worker:
        await until(lambda: has_tokens(herd.broker, asked.generation_id, 5))
        await herd.end(asked, way)
        await until(reached)
        gate.allow(2)
        await herd.assert_told(asked, way)
        assert worker.engine.num_steps <= 7
    assert len((await read(herd.broker, asked.generation_id)).ids) <= 6


@pytest.mark.parametrize("way", BY_CALLERS)
async def test_running_and_the_nudge_is_lost(herd: EndingHerd, reached: Callable[[], bool], way: Way) -> None:
    """The answer to the next row tells: a token may be made meanwhile."""
    broker = DeafBroker.connect(herd.redis_url)
    asked, gate = await herd.ask(), Gate(5)
    async with local_worker(broker, EngineDouble(gate)) as worker:
        await until(lambda: has_tokens(herd.broker, asked.generation_id, 5))
        await herd.end(asked, way)
        gate.allow(1)
        await until(reached)
        gate.allow(2)
        await herd.assert_told(asked, way)
        assert worker.engine.num_steps <= 8
    assert len((await read(herd.broker, asked.generation_id)).ids) <= 7
    await broker.close()


@pytest.mark.parametrize("is_on_its_way", [False, True], ids=["running", "taken"])
async def test_out_of_time(herd: EndingHerd, holding: HoldingBroker, is_on_its_way: bool) -> None:
    """The engine ends it by its own clock, with what there is, however long the lease was on its way: TIME_LIMIT."""
    asked, gate = await herd.ask(), Gate(0 if is_on_its_way else 3)
    holding.left_ms = 200
    if is_on_its_way:
        holding.prepare(asked.generation_id, holds_answer=True)
    async with local_worker(holding, EngineDouble(gate)) as worker:
        await until(lambda: holding.held.is_set() if is_on_its_way else worker.engine.num_steps > 0)
        over_s = time.monotonic() + 0.2  # it was taken before
        await until(lambda: time.monotonic() > over_s)
        holding.go_on.set()
        gate.allow(2)
        received = await read_rest(asked.call, asked.received)
        assert worker.engine.num_steps <= (2 if is_on_its_way else 5)
    assert received.only("choice_finished").choice_finished.reason == common_pb2.FINISH_REASON_TIME_LIMIT
    assert received.num_tokens <= (0 if is_on_its_way else 3)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
async def test_abandoned(herd: EndingHerd, tmp_path: Path, blow: signal.Signals) -> None:
    """Its owner is dead or frozen, and no worker lives: readers are told. Nobody runs it later, its owner neither."""
    with worker_process(herd.redis_url, tmp_path / "log", DOUBLE_STEP_S="0.05") as owner:
        await until(lambda: is_ready(herd.broker, owner.pid), 60)
        asked = {way: await herd.ask() for way in Way}
        for each in asked.values():
            await until(lambda: has_tokens(herd.broker, each.generation_id, 1))  # noqa: B023  awaited at once
        beat = await beat_of(herd.broker, owner.pid)
        assert beat is not None
        owner_id, pids = beat.worker_id, (owner.pid, int(beat.fields["serving_pid"]), int(beat.fields["pid"]))
        for pid in pids:
            os.kill(pid, blow)
        for way, each in asked.items():
            await herd.end(each, way, since_ms=GRACE_MS + 1)
        await herd.pass_grace(asked[Way.CANCEL])
        for way in (Way.CANCEL, Way.DEADLINE):
            await herd.assert_told(asked[way], way)
        so_far = {way: await read(herd.broker, each.generation_id) for way, each in asked.items()}
        async with local_worker(herd.broker) as worker:
            await until(lambda: is_reaped(herd.broker, owner_id))
            left = await finished(herd.broker, asked[Way.LEAVE].generation_id)
            assert left.ending is not None
            assert left.ending.reason is EndReason.CANCELLED
            for each in asked.values():
                await assert_not_run(herd, worker, each, attempts=[1])
                worker.engine.num_steps = 0
        if blow is signal.SIGSTOP:
            for pid in reversed(pids):
                os.kill(pid, signal.SIGCONT)
            await until(lambda: holds_nothing(herd.broker, owner.pid))
        for way, each in asked.items():
            logged = await read(herd.broker, each.generation_id)
            assert (logged.ids, logged.attempts) == (so_far[way].ids, [1])


async def is_reaped(broker: Broker, worker_id: str) -> bool:
    """Do as the worker that comes does with one that is dead; its last beat may have been on its way."""
    beats = {each.worker_id: each.beat for each in await broker.pool()}
    return await broker.reap(worker_id, beats.get(worker_id, ""), MODEL) is not None


async def holds_nothing(broker: Broker, pid: int) -> bool:
    """Whether that worker beats again, and has dropped what it lost."""
    beat = await beat_of(broker, pid)
    return beat is not None and beat.fields["running"] == "0"
