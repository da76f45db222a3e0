"""The engine process' work, in this process with an engine double and a real server: claim, run, publish, end."""

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
import redis.asyncio

from contract import keys
from contract.broker import Broker, Delivered, NotTaken, RowReply, State, StepRow, Taken
from contract.errors import BrokerDown
from contract.messages import ChoiceEnd, EndReason, decode_tokens
from tests.until import until
from tests.worker.engine_double import BROKEN, REFUSED, EngineDouble, Gate, expected_ids, text_of
from tests.worker.rig import MODEL, LocalWorker, finished, has_tokens, local_worker, make_job, read, submit
from worker.engine_link import EngineLost


async def test_a_job_becomes_a_log_and_an_end(broker: Broker) -> None:
    """Every token once, in order, and the end in the row of the last one."""
    generation_id = await submit(broker, make_job([5, 6], 40))
    async with local_worker(broker):
        logged = await finished(broker, generation_id)

    assert logged.ids == expected_ids([5, 6], 40)
    assert logged.text == "".join(map(text_of, expected_ids([5, 6], 40)))
    assert logged.attempts == [1]
    assert logged.ending is not None
    assert logged.ending.reason is EndReason.DONE
    assert logged.ending.choice_ends == (ChoiceEnd(0, "LENGTH", 40),)
    assert logged.ending.num_tokens == 40


async def test_more_jobs_than_slots_are_all_served(broker: Broker) -> None:
    """Jobs wait in the stream, not in the worker; a slot that becomes free is used at once."""
    ids = [await submit(broker, make_job([number + 1], 10 + number)) for number in range(12)]
    async with local_worker(broker, max_sequences=3) as worker:
        for number, generation_id in enumerate(ids):
            assert (await finished(broker, generation_id)).ids == expected_ids([number + 1], 10 + number)
        await until(lambda: worker.progress.num_running == 0)
    assert worker.progress.num_slots == 3


async def test_jobs_of_every_class_are_served(broker: Broker) -> None:
    """High, normal and low, from an idle worker that waits for all three."""
    async with local_worker(broker):
        for job_class in ("low", "normal", "high"):
            generation_id = await submit(broker, make_job([9], 3, job_class=job_class))
            assert (await finished(broker, generation_id)).ids == expected_ids([9], 3)


async def test_the_higher_class_goes_first_when_slots_are_scarce(broker: Broker) -> None:
    """With one slot, a high job that came last is taken before the normal ones that wait."""
    gate = Gate()
    async with local_worker(broker, EngineDouble(gate), max_sequences=1) as worker:
        first = await submit(broker, make_job([1], 2))
        await until(lambda: worker.progress.num_running == 1)
        normal = await submit(broker, make_job([2], 2, job_class="low"))
        high = await submit(broker, make_job([3], 2, job_class="high"))
        gate.allow(2)
        await finished(broker, first)
        gate.allow(2)
        await finished(broker, high)
        assert (await read(broker, normal)).ids == []
        gate.open()
        await finished(broker, normal)


async def test_a_cancel_ends_in_the_next_step_and_frees_the_slot(broker: Broker) -> None:
    """A nudge brings it to the engine between two steps; what was generated stays in the log."""
    gate = Gate(5)
    async with local_worker(broker, EngineDouble(gate), max_sequences=1) as worker:
        generation_id = await submit(broker, make_job([4], 1000))
        await until(lambda: has_tokens(broker, generation_id, 5))
        state, reason = await broker.cancel(generation_id, caller="anonymous")
        assert (state, reason) == (State.RUNNING, None)
        await until(lambda: is_free_after_a_step(worker, gate))
        logged = await finished(broker, generation_id)

    assert logged.ending is not None
    assert logged.ending.reason is EndReason.CANCELLED
    assert logged.ending.choice_ends == (ChoiceEnd(0, "CANCELLED", len(logged.ids)),)
    assert logged.ids == expected_ids([4], worker.engine.num_steps_at_cancel)
    assert len(logged.ids) < 1000


def is_free_after_a_step(worker: LocalWorker, gate: Gate) -> bool:
    """Let the engine make one more step; whether the worker holds nothing any more."""
    gate.allow(1)
    return worker.progress.num_running == 0


async def test_a_request_the_engine_refuses_fails_alone(broker: Broker) -> None:
    """Its stream ends with FAILED and a text without its content; its neighbour goes on."""
    bad = await submit(broker, make_job([REFUSED], 5))
    good = await submit(broker, make_job([8], 5))
    async with local_worker(broker):
        failed, served = await finished(broker, bad), await finished(broker, good)

    assert failed.ending is not None
    assert (failed.ending.reason, failed.ending.error) == (EndReason.FAILED, "engine error")
    assert served.ids == expected_ids([8], 5)


async def test_max_time_ends_with_what_there_is(broker: Broker) -> None:
    """The deadline counts from acceptance; the end is DONE with TIME_LIMIT."""
    generation_id = await submit(broker, make_job([3], 100_000, max_time_ms=300))
    async with local_worker(broker, EngineDouble(lambda: threading.Event().wait(0.01))):
        logged = await finished(broker, generation_id)

    assert logged.ending is not None
    assert logged.ending.reason is EndReason.DONE
    assert [end.reason for end in logged.ending.choice_ends] == ["TIME_LIMIT"]
    assert logged.ids == expected_ids([3], len(logged.ids))


class LossyBroker(Broker):
    """Every third `step` is carried out, but its reply is lost; so is every other `take`."""

    num_steps = 0
    num_takes = 0

    async def step(self, rows: Sequence[StepRow]) -> list[RowReply]:
        """Lose every third reply."""
        replies = await super().step(rows)
        self.num_steps += 1
        if self.num_steps % 3 == 0:
            raise BrokerDown
        return replies

    async def take(self, entry: Delivered, *, worker_id: str, lease: str) -> Taken | NotTaken:
        """Lose every other reply."""
        taken = await super().take(entry, worker_id=worker_id, lease=lease)
        self.num_takes += 1
        if self.num_takes % 2 == 1:
            raise BrokerDown
        return taken


async def test_lost_replies_lose_and_repeat_nothing(redis_url: str) -> None:
    """The log tells what it already has; one lease is one attempt, however often it was asked for."""
    broker = LossyBroker.connect(redis_url)
    try:
        ids = [await submit(broker, make_job([number + 1], 60)) for number in range(4)]
        async with local_worker(broker, EngineDouble(lambda: threading.Event().wait(0.001))):
            for number, generation_id in enumerate(ids):
                logged = await finished(broker, generation_id)
                assert logged.ids == expected_ids([number + 1], 60)
                assert logged.attempts == [1]
    finally:
        await broker.close()


async def test_an_entry_whose_delivery_was_lost_is_found(broker: Broker) -> None:
    """Pending to this worker, but never seen by it: two rounds later it is handed back and served."""
    async with local_worker(broker) as worker:
        await until(lambda: worker.progress.state == 1)
    generation_id = await submit(broker, make_job([6], 8))
    (lost,) = await broker.read_jobs(worker.worker_id, MODEL, "normal", count=1, block_ms=1)
    assert lost.generation_id == generation_id

    async with local_worker(broker, worker_id=worker.worker_id):
        logged = await finished(broker, generation_id)

    assert logged.ids == expected_ids([6], 8)
    assert await broker.own_pending(worker.worker_id, MODEL) == []


async def test_a_worker_that_lost_its_lease_writes_nothing_and_goes_on(broker: Broker) -> None:
    """Another took over while it was away: its row is fenced, it drops the sequence and serves others."""
    gate = Gate(5)
    async with local_worker(broker, EngineDouble(gate), max_sequences=1) as zombie:
        generation_id = await submit(broker, make_job([7], 30))
        await until(lambda: has_tokens(broker, generation_id, 5))
        assert await broker.reap(zombie.worker_id, "", MODEL) == 1
        (entry,) = await broker.adopt("another", MODEL, max_jobs=1, may_run_alone=True)
        assert isinstance(await broker.take(entry, worker_id="another", lease="1"), Taken)
        gate.open()
        other = await submit(broker, make_job([8], 4))
        assert (await finished(broker, other)).ids == expected_ids([8], 4)
        assert len((await read(broker, generation_id)).ids) == 5

        await broker.release(entry, worker_id="another", lease="1")
        logged = await finished(broker, generation_id)

    assert logged.ids == expected_ids([7], 30)
    assert logged.attempts == [1, 2, 3]


async def test_draining_hands_back_and_another_worker_finishes(broker: Broker) -> None:
    """Everything generated is in the log, nothing is charged, and the next worker goes on from there."""
    gate = Gate(10)
    async with local_worker(broker, EngineDouble(gate)) as leaving:
        generation_id = await submit(broker, make_job([2], 50))
        await until(lambda: has_tokens(broker, generation_id, 10))
        leaving.stop.set()
        await until(lambda: is_drained_after_a_step(leaving, gate))
        so_far = await read(broker, generation_id)
        async with local_worker(broker):
            logged = await finished(broker, generation_id)

    assert len(so_far.ids) == leaving.engine.num_steps
    assert so_far.ending is None
    assert logged.ids == expected_ids([2], 50)
    assert logged.attempts == [1, 2]


def is_drained_after_a_step(worker: LocalWorker, gate: Gate) -> bool:
    """Let the engine make one more step; whether the worker has ended."""
    gate.allow(1)
    return worker.serving.done()


async def test_draining_finishes_what_can_be_finished(broker: Broker) -> None:
    """With time left, nobody is moved; nothing new is claimed meanwhile."""
    gate = Gate(3)
    async with local_worker(broker, EngineDouble(gate), drain_timeout_s=60.0) as leaving:
        held = await submit(broker, make_job([2], 20))
        await until(lambda: has_tokens(broker, held, 3))
        leaving.stop.set()
        await until(lambda: leaving.progress.state == 2)
        late = await submit(broker, make_job([3], 20))
        gate.open()
        await leaving.serving

    assert (await read(broker, held)).attempts == [1]
    assert (await read(broker, held)).ids == expected_ids([2], 20)
    assert (await read(broker, late)).ids == []


async def test_unpublished_tokens_are_bounded(redis_url: str) -> None:
    """While the broker does not answer the engine goes on to the bound, and no further; then all is published."""
    broker = OutageBroker.connect(redis_url)
    try:
        generation_id = await submit(broker, make_job([5], 400))
        engine = EngineDouble(pace=lambda: time.sleep(0.002))  # a step takes time, in which the loop can say stop
        async with local_worker(broker, engine, max_unpublished_tokens=50) as worker:
            broker.is_down = True
            await until(lambda: worker.progress.has_work == 0 and worker.engine.num_steps > 0)
            made = worker.engine.num_steps
            assert (await read(broker, generation_id)).ids == []
            broker.is_down = False
            logged = await finished(broker, generation_id)
    finally:
        await broker.close()

    assert 50 <= made < 400
    assert logged.ids == expected_ids([5], 400)


async def test_a_log_that_lost_its_tail_gets_it_again(broker: Broker, redis_url: str) -> None:
    """The server came back with less than it had acknowledged: the worker appends the same tokens again."""
    gate = Gate(12)
    async with local_worker(broker, EngineDouble(gate)):
        generation_id = await submit(broker, make_job([9], 40))
        await until(lambda: has_tokens(broker, generation_id, 12))
        gate.allow(8)
        await until(lambda: has_tokens(broker, generation_id, 20))
        await cut_log(redis_url, generation_id, 12)
        assert len((await read(broker, generation_id)).ids) == 12
        gate.open()
        logged = await finished(broker, generation_id)

    assert logged.ids == expected_ids([9], 40)
    assert logged.attempts == [1]


async def cut_log(redis_url: str, generation_id: str, num_tokens: int) -> None:
    """Make record and log what they were when the generation had so many tokens."""
    client: Any = redis.asyncio.Redis.from_url(redis_url)  # redis-py's types do not tell sync from async
    log = keys.log(generation_id)
    kept = await client.xrange(log, max=f"{num_tokens}-0")
    await client.delete(log)
    for entry_id, fields in kept:
        await client.xadd(log, fields, id=entry_id)
    await client.pexpire(log, 600_000)
    _, last = kept[-1]
    chain = decode_tokens(last[b"c"])[-1].chain
    await client.hset(keys.record(generation_id), mapping={"T": num_tokens, "chain": chain})
    await client.aclose()


async def test_a_job_of_another_version_fails_by_itself(broker: Broker, redis_url: str) -> None:
    """It ends with FAILED instead of going round for ever; its neighbour is served."""
    unreadable = await submit(broker, make_job([1], 5))
    client = redis.asyncio.Redis.from_url(redis_url)
    await client.hset(keys.record(unreadable), "job", b'{"v": 99}')
    await client.aclose()
    async with local_worker(broker):
        other = await submit(broker, make_job([2], 5))
        assert (await finished(broker, other)).ids == expected_ids([2], 5)
        failed = await finished(broker, unreadable)

    assert failed.ending is not None
    assert failed.ending.reason is EndReason.FAILED


class OutageBroker(Broker):
    """Refuses every `step` while it is down."""

    is_down = True

    async def step(self, rows: Sequence[StepRow]) -> list[RowReply]:
        """Answer only when up."""
        if self.is_down:
            raise BrokerDown
        return await super().step(rows)


async def test_a_crash_of_the_engine_ends_the_process_loudly(broker: Broker) -> None:
    """Nothing is swallowed: the exception comes out of `serve`."""
    await submit(broker, make_job([BROKEN], 5))
    with pytest.raises(ExceptionGroup) as caught:
        async with local_worker(broker) as worker:
            await asyncio.wait([worker.serving])
    assert caught.group_contains(EngineLost, match="the device is lost")
