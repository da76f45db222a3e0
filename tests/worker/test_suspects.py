"""Jobs that ended a worker before: taken one at a time, and alone when the next crash convicts them."""

from contract.broker import Broker, State, Taken
from contract.messages import EndReason
from tests.until import until
from tests.worker.engine_double import EngineDouble, Gate, expected_ids
from tests.worker.rig import MODEL, finished, has_tokens, local_worker, make_job, read, submit


async def crash(broker: Broker, generation_ids: set[str]) -> None:
    """A worker takes these jobs, and only these, and dies of them."""
    worker_id = "crashing"
    entries = await broker.adopt(worker_id, MODEL, max_jobs=100, alone=True)
    entries += await broker.read_jobs(worker_id, MODEL, "normal", count=100, block_ms=0)
    assert {entry.generation_id for entry in entries} == generation_ids
    for number, entry in enumerate(entries):
        assert isinstance(await broker.take(entry, worker_id=worker_id, lease=f"crash {number}"), Taken)
    assert await broker.reap(worker_id, "", MODEL) == len(entries)


async def test_a_suspect_proves_itself_before_the_next_is_taken(broker: Broker) -> None:
    """Four jobs of a dead worker: each is adopted when the one before has made a token; all finish."""
    ids = [await submit(broker, make_job([number + 1], 20)) for number in range(4)]
    await crash(broker, set(ids))
    gate = Gate()
    async with local_worker(broker, EngineDouble(gate)) as worker:
        await until(lambda: worker.progress.has_work == 1)
        assert worker.progress.num_running == 1
        gate.allow(1)
        await until(lambda: worker.progress.num_running == 2)
        gate.open()
        for number, generation_id in enumerate(ids):
            logged = await finished(broker, generation_id)
            assert logged.ids == expected_ids([number + 1], 20)
            assert logged.attempts == [1, 2]


async def test_a_job_that_may_be_poison_runs_alone(broker: Broker) -> None:
    """A busy worker keeps it, finishes what it has, runs it by itself, and only then goes on with others."""
    suspect = await submit(broker, make_job([1], 3))
    await crash(broker, {suspect})
    await crash(broker, {suspect})
    gate = Gate()
    async with local_worker(broker, EngineDouble(gate)) as worker:
        await until(lambda: worker.progress.num_running == 1)
        later = await submit(broker, make_job([2], 3))
        gate.allow(2)
        await until(lambda: has_tokens(broker, suspect, 2))
        assert (await read(broker, later)).attempts == []
        gate.open()
        assert (await finished(broker, suspect)).attempts == [1, 2, 3]
        assert (await finished(broker, later)).ids == expected_ids([2], 3)


async def test_a_busy_worker_makes_room_for_it(broker: Broker) -> None:
    """Under load no worker is ever idle by chance: the one that finds the job stops claiming until it has run."""
    suspect = await submit(broker, make_job([1], 3))
    await crash(broker, {suspect})
    gate = Gate()
    async with local_worker(broker, EngineDouble(gate)) as worker:
        await until(lambda: worker.progress.num_running == 1)  # its second attempt, with one crash
        busy = await submit(broker, make_job([2], 50))
        gate.allow(1)
        await until(lambda: worker.progress.num_running == 2)
        assert await broker.reap(worker.worker_id, "", MODEL) == 2  # for the second time, the suspect
        gate.open()
        logged = await finished(broker, suspect)
        other = await finished(broker, busy)

    assert logged.ids == expected_ids([1], 3)
    assert other.ids == expected_ids([2], 50)
    assert logged.ending is not None
    assert logged.ending.reason is EndReason.DONE


async def test_the_third_crash_convicts(broker: Broker) -> None:
    """It ends as POISON when somebody would take it again, and the dead letters name it."""
    suspect = await submit(broker, make_job([1], 3))
    for _ in range(3):
        await crash(broker, {suspect})
    async with local_worker(broker):
        logged = await finished(broker, suspect)
    assert logged.ending is not None
    assert (logged.ending.reason, logged.ending.attempts) == (EndReason.POISON, 3)
    (standing,) = await broker.standings([suspect])
    assert standing is not None
    assert standing.state is State.FINISHED
