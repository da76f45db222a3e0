"""Jobs that ended a worker before: taken one at a time, and alone when the next crash convicts them."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from contract.broker import PROVEN_TOKENS, Broker, State, Taken
from contract.messages import EndReason
from tests.until import until
from tests.worker.engine_double import EngineDouble, Gate, expected_ids
from tests.worker.rig import MODEL, LocalWorker, finished, has_tokens, local_worker, make_job, read, submit
from worker.engine.sequence import GenerationRequest, StepEvent, TokenEvent


async def crash(broker: Broker, generation_ids: set[str], times: int = 1) -> None:
    """Workers take these jobs, and only these, and die of them."""
    for worker_id in (f"crashing-{number}" for number in range(times)):
        entries = await broker.adopt(worker_id, MODEL, max_jobs=100, may_run_alone=True)
        entries += await broker.read_jobs(worker_id, MODEL, "normal", count=100, block_ms=0)
        assert {entry.generation_id for entry in entries} == generation_ids
        for number, entry in enumerate(entries):
            assert isinstance(await broker.take(entry, worker_id=worker_id, lease=f"crash {number}"), Taken)
        assert await broker.reap(worker_id, "", MODEL) == len(entries)


async def test_what_a_dead_worker_held_is_taken_at_once(broker: Broker) -> None:
    """A first crash makes nobody wait: all are adopted together, and finish."""
    ids = [await submit(broker, make_job([number + 1], 20)) for number in range(4)]
    await crash(broker, set(ids))
    gate = Gate()
    async with local_worker(broker, EngineDouble(gate)) as worker:
        await until(lambda: worker.progress.num_running == 4)
        gate.open()
        for number, generation_id in enumerate(ids):
            logged = await finished(broker, generation_id)
            assert logged.ids == expected_ids([number + 1], 20)
            assert logged.attempts == [1, 2]


async def test_a_job_that_may_be_poison_runs_alone(broker: Broker) -> None:
    """It has the engine to itself until it has made PROVEN_TOKENS; nothing is claimed meanwhile."""
    suspect = await submit(broker, make_job([1], 50))
    await crash(broker, {suspect}, times=2)
    gate = Gate()
    async with local_worker(broker, EngineDouble(gate)) as worker:
        await until(lambda: worker.progress.num_running == 1)
        later = await submit(broker, make_job([2], 3))
        gate.allow(PROVEN_TOKENS - 1)
        await until(lambda: has_tokens(broker, suspect, PROVEN_TOKENS - 1))
        assert (await read(broker, later)).attempts == []
        gate.open()
        assert (await finished(broker, suspect)).ids == expected_ids([1], 50)
        assert (await finished(broker, later)).ids == expected_ids([2], 3)


async def test_in_a_busy_worker_all_others_stand_still(broker: Broker) -> None:
    """Under load no worker is ever idle: the one that finds the job stops the rest at a step border, for a moment."""
    engine = RecordingEngine(lambda: time.sleep(0.002))
    async with busy_worker(broker, engine) as (_, busy, suspect):
        assert (await finished(broker, suspect)).ids == expected_ids([1], 50)
        assert (await finished(broker, busy)).ids == expected_ids([2], 1000)
    first = engine.made.index(engine.names[1])
    assert set(engine.made[first : first + PROVEN_TOKENS]) == {engine.names[1]}
    assert set(engine.made[first + PROVEN_TOKENS : first + 50]) == set(engine.names), "and then together"


async def test_a_drain_lets_the_others_go_on(broker: Broker) -> None:
    """A worker that is told to stop while one job runs alone still finishes what stood still."""
    async with busy_worker(broker, RecordingEngine(lambda: time.sleep(0.002))) as (worker, busy, suspect):
        worker.stop.set()
        assert (await finished(broker, suspect)).attempts == [1, 2, 3]
        assert (await finished(broker, busy)).attempts == [1]


class RecordingEngine(EngineDouble):
    """Remembers whose tokens it made, in order, and the names of all that it was given."""

    def __init__(self, pace: Callable[[], object] = lambda: None) -> None:
        super().__init__(pace)
        self.made: list[str] = []
        self.names: list[str] = []

    def add(self, request: GenerationRequest) -> None:
        """As the engine does."""
        self.names.append(request.generation_id)
        super().add(request)

    def step(self) -> list[StepEvent]:
        """As the engine does."""
        events = super().step()
        self.made += [each.generation_id for each in events if isinstance(each, TokenEvent)]
        return events


@asynccontextmanager
async def busy_worker(broker: Broker, engine: "RecordingEngine") -> AsyncIterator[tuple[LocalWorker, str, str]]:
    """A worker in the middle of one job that has just taken another, which may be poison."""
    suspect = await submit(broker, make_job([1], 50))
    await crash(broker, {suspect}, times=2)
    [entry] = await broker.adopt("keeper", MODEL, max_jobs=1, may_run_alone=True)
    busy = await submit(broker, make_job([2], 1000))
    async with local_worker(broker, engine, drain_timeout_s=30.0) as worker:
        await until(lambda: has_tokens(broker, busy, 1))
        await broker.release(entry, worker_id="keeper", lease=None)
        await until(lambda: len(engine.names) == 2)
        yield worker, busy, suspect


async def test_the_third_crash_convicts(broker: Broker) -> None:
    """It ends as POISON when somebody would take it again, and the dead letters name it."""
    suspect = await submit(broker, make_job([1], 3))
    await crash(broker, {suspect}, times=3)
    async with local_worker(broker):
        logged = await finished(broker, suspect)
    assert logged.ending is not None
    assert (logged.ending.reason, logged.ending.attempts) == (EndReason.POISON, 3)
    (standing,) = await broker.standings([suspect])
    assert standing is not None
    assert standing.state is State.FINISHED
