"""What the reads beside the claim loop bring: taken there and then if there is room, and lost in no case."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from contract import keys
from contract.broker import Broker, Delivered, NotTaken, Taken
from tests.until import until
from tests.worker.engine_double import EngineDouble, Gate, expected_ids
from tests.worker.rig import MODEL, finished, local_worker, make_job, read, submit


class SlowBroker(Broker):
    """Its takes, and what its blocking reads have brought, wait until they are let go.

    Attributes:
        takers: the task of each take.
        num_waiting: reads that have brought something, and wait.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]  # connect's
        self.takers: list[str] = []
        self.num_waiting = 0
        self.may_take, self.may_bring = asyncio.Event(), asyncio.Event()
        self.may_take.set()
        self.may_bring.set()

    async def take(self, entry: Delivered, *, worker_id: str, lease: str) -> Taken | NotTaken:
        """When it may."""
        task = asyncio.current_task()
        self.takers.append(task.get_name() if task else "")
        await self.may_take.wait()
        return await super().take(entry, worker_id=worker_id, lease=lease)

    async def read_jobs(
        self, worker_id: str, model: str, job_class: str, *, count: int, block_ms: int
    ) -> list[Delivered]:
        """When it may, if it waits at all."""
        entries = await super().read_jobs(worker_id, model, job_class, count=count, block_ms=block_ms)
        if entries and block_ms:
            self.num_waiting += 1
            await self.may_bring.wait()
            self.num_waiting -= 1
        return entries


@pytest.fixture
async def slow(redis_url: str) -> AsyncIterator[SlowBroker]:
    """The worker's broker."""
    found = SlowBroker.connect(redis_url)
    yield found
    await found.close()


async def is_taken_by_a_read(broker: Broker, slow: SlowBroker) -> bool:
    """Serve one more job; whether a read took one. A sweep may always come first, on a busy machine."""
    await finished(broker, await submit(broker, make_job([7], 2)))
    return "read-normal" in slow.takers


async def test_a_read_takes_what_it_brings(broker: Broker, slow: SlowBroker) -> None:
    """An idle worker's way to a job has no turn of the claim loop in it."""
    async with local_worker(slow):
        await until(lambda: is_taken_by_a_read(broker, slow))


async def test_reads_that_come_back_together_take_no_more_than_there_is_room(broker: Broker, slow: SlowBroker) -> None:
    """One slot, a job of each class: whoever takes first has it, and the others go back, uncharged."""
    gate = Gate()
    async with local_worker(slow, EngineDouble(gate), max_sequences=1) as worker:
        await until(lambda: is_waiting(broker), what="a read of each class waits")
        slow.may_bring.clear()
        slow.may_take.clear()
        jobs = {name: make_job([number], 3, job_class=name) for number, name in enumerate(("high", "normal", "low"), 1)}
        for job in jobs.values():
            await submit(broker, job)
        await until(lambda: slow.num_waiting == len(jobs) or slow.takers)
        slow.may_bring.set()
        await until(lambda: slow.takers)
        slow.may_take.set()
        await until(lambda: worker.progress.num_running == 1)
        await until(lambda: has_handed_back(broker, worker.worker_id), what="all but one are back")
        assert len(slow.takers) == 1
        gate.open()
        for job in jobs.values():
            logged = await finished(broker, job.generation_id)
            assert logged.ids == expected_ids(job.prompt_ids, 3)
            assert logged.attempts == [1]


async def is_waiting(broker: Broker) -> bool:
    """Whether the worker waits for a job of each class."""
    return bool((await broker._client.info("clients"))["blocked_clients"] == len(keys.CLASSES))


async def has_handed_back(broker: Broker, worker_id: str) -> bool:
    """Whether one entry alone is pending to the worker, and no other is on its way to it."""
    return len(await broker.own_pending(worker_id, MODEL)) == 1


async def test_what_a_read_takes_while_the_worker_is_stopped_is_served(broker: Broker, slow: SlowBroker) -> None:
    """It was taken before; the worker leaves when it has finished it."""
    async with local_worker(slow, drain_timeout_s=60.0) as leaving:
        slow.may_take.clear()
        generation_id = await submit(broker, make_job([5], 4))
        await until(lambda: slow.takers)
        leaving.stop.set()
        slow.may_take.set()
        await leaving.serving
    logged = await read(broker, generation_id)
    assert logged.ids == expected_ids([5], 4)
    assert logged.attempts == [1]


async def test_what_a_read_brings_after_the_stop_goes_back(broker: Broker, slow: SlowBroker) -> None:
    """Never taken by who leaves; the next worker has it as a new one."""
    async with local_worker(slow) as leaving:
        slow.may_bring.clear()
        ids = []
        while not slow.num_waiting:  # a sweep may come first, and serve it
            ids.append(await submit(broker, make_job([6], 4)))
            await until(lambda: slow.num_waiting or is_served(broker, ids[-1]))
        num_takes = len(slow.takers)
        leaving.stop.set()
        slow.may_bring.set()
        await leaving.serving
        assert len(slow.takers) == num_takes
        assert await broker.own_pending(leaving.worker_id, MODEL) == []
    async with local_worker(broker):
        logged = await finished(broker, ids[-1])
    assert logged.ids == expected_ids([6], 4)
    assert logged.attempts == [1]


async def is_served(broker: Broker, generation_id: str) -> bool:
    """Whether it has its end."""
    return (await read(broker, generation_id)).ending is not None
