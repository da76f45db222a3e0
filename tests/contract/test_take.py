"""take: an entry that is pending to a worker becomes a lease, once."""

import pytest

from contract import keys
from contract.broker import MAX_CRASHES, MAX_DEATHS, PROVEN_TOKENS, Delivered, NotTaken, State, Taken, new_lease
from contract.messages import AttemptMark, Ending, EndReason, Job, MalformedMessage
from tests.contract.rig import CALLER, OTHER_WORKER, QUEUE, WORKER, Rig, make_job


async def test_a_take_makes_the_worker_the_owner(rig: Rig) -> None:
    """The record names it, the log has the mark of the attempt, and the entry is still pending to it."""
    submitted = await rig.submit(max_time_ms=5000)
    [entry] = await rig.deliver()
    taken = await rig.take(entry)
    assert taken.job == make_job(submitted.generation_id, max_time_ms=5000)
    assert (taken.attempt, taken.num_tokens, taken.chain, taken.cancel) == (1, 0, 0, False)
    assert taken.deadline_ms == taken.accepted_ms + 5000 == submitted.accepted_ms + 5000
    assert taken.accepted_ms <= taken.now_ms <= await rig.broker.now_ms()
    record = await rig.fields(submitted.generation_id)
    assert (record["state"], record["owner"], record["lease"]) == ("running", WORKER, taken.lease)
    assert await rig.broker.read_log(submitted.generation_id) == [AttemptMark(0, 1)]
    assert await rig.pending() == {entry.entry_id: WORKER}


async def test_the_same_take_twice_is_one(rig: Rig) -> None:
    """A retry with the same lease gets the same answer and writes nothing."""
    await rig.submit()
    [entry] = await rig.deliver()
    lease = new_lease()
    first = await rig.broker.take(entry, worker_id=WORKER, lease=lease)
    before = await rig.snapshot()
    again = await rig.broker.take(entry, worker_id=WORKER, lease=lease)
    assert isinstance(first, Taken)
    assert isinstance(again, Taken)
    assert (again.attempt, again.num_tokens, again.lease) == (first.attempt, first.num_tokens, first.lease)
    assert await rig.snapshot() == before


async def test_a_retried_take_learns_where_the_log_is_now(rig: Rig) -> None:
    """The reply of the first call may have been lost after the worker's own tokens, or a cancel, came in."""
    taken, text = await rig.start()
    await rig.step(text.row(taken.lease, 0, 4))
    await rig.broker.cancel(text.generation_id, caller=CALLER)
    again = await rig.broker.take(taken.entry, worker_id=WORKER, lease=taken.lease)
    assert isinstance(again, Taken)
    assert (again.num_tokens, again.chain, again.cancel) == (4, text.chains[4], True)


@pytest.mark.parametrize("pending_to_us", [True, False])
async def test_what_another_holds_is_lost(rig: Rig, pending_to_us: bool) -> None:
    """An entry that is another's, or a record that is under another lease, gives nothing and changes nothing."""
    taken, _ = await rig.start()
    before = await rig.snapshot()
    worker = WORKER if pending_to_us else OTHER_WORKER
    assert await rig.broker.take(taken.entry, worker_id=worker, lease=new_lease()) is NotTaken.LOST
    assert await rig.snapshot() == before


async def test_an_undelivered_entry_is_lost(rig: Rig) -> None:
    """A take without a delivery before it has no right."""
    submitted = await rig.submit()
    entry = Delivered(QUEUE, (await rig.fields(submitted.generation_id))["entry"], submitted.generation_id)
    assert await rig.broker.take(entry, worker_id=WORKER, lease=new_lease()) is NotTaken.LOST


async def test_an_entry_without_record_is_dropped(rig: Rig) -> None:
    """A record may expire before its entry is read: acked and deleted, so that it does not come again."""
    submitted = await rig.submit()
    [entry] = await rig.deliver()
    await rig.client.delete(keys.record(submitted.generation_id))
    assert await rig.broker.take(entry, worker_id=WORKER, lease=new_lease()) is NotTaken.DROPPED
    assert await rig.pending() == {}
    assert await rig.client.xlen(QUEUE) == 0


async def test_an_entry_that_is_not_the_records_is_dropped(rig: Rig) -> None:
    """After a lost record and a second submit two entries stand for one generation; only the record's counts."""
    submitted = await rig.submit()
    [entry] = await rig.deliver()
    await rig.client.delete(keys.record(submitted.generation_id))
    await rig.submit(submitted.generation_id)
    assert await rig.broker.take(entry, worker_id=WORKER, lease=new_lease()) is NotTaken.DROPPED
    [second] = await rig.deliver()
    await rig.take(second)


async def test_a_finished_generation_is_dropped_by_who_reads_it(rig: Rig) -> None:
    """A queued generation that was cancelled stays in the stream until then."""
    submitted = await rig.submit()
    await rig.broker.cancel(submitted.generation_id, caller=CALLER)
    assert await rig.client.xlen(QUEUE) == 1
    [entry] = await rig.deliver()
    assert await rig.broker.take(entry, worker_id=WORKER, lease=new_lease()) is NotTaken.DROPPED
    assert (await rig.client.xlen(QUEUE), await rig.pending()) == (0, {})


async def test_a_passed_deadline_ends_instead_of_beginning(rig: Rig) -> None:
    """Nobody computes what nobody may have."""
    submitted = await rig.submit()
    [entry] = await rig.deliver()
    await rig.rewrite(submitted.generation_id, deadline=await rig.broker.now_ms() - 1)
    assert await rig.broker.take(entry, worker_id=WORKER, lease=new_lease()) is NotTaken.DROPPED
    [ending] = await rig.broker.read_log(submitted.generation_id)
    assert isinstance(ending, Ending)
    assert ending.reason is EndReason.DEADLINE
    assert await rig.pending() == {}


async def test_the_job_that_ended_its_workers_is_poison(rig: Rig) -> None:
    """After MAX_CRASHES it is closed at the next take and noted, without its prompt, among the dead."""
    taken, text = await rig.start()
    await rig.kill()
    for crash in range(1, MAX_CRASHES):
        [entry] = await rig.adopt(f"worker-{crash}")
        await rig.take(entry, f"worker-{crash}")
        assert await rig.kill(f"worker-{crash}") == 1
    assert int((await rig.fields(text.generation_id))["crashes"]) == MAX_CRASHES
    [entry] = await rig.adopt()
    assert await rig.broker.take(entry, worker_id=OTHER_WORKER, lease=new_lease()) is NotTaken.POISON
    assert await rig.broker.dead.count() == 1
    ending = (await rig.broker.read_log(text.generation_id))[-1]
    assert isinstance(ending, Ending)
    assert (ending.reason, ending.attempts) == (EndReason.POISON, MAX_CRASHES)
    [(_, dead)] = await rig.client.xrange(keys.DEAD)
    assert dead == {b"g": text.generation_id.encode(), b"attempts": str(MAX_CRASHES).encode()}
    record = await rig.broker.record(text.generation_id, caller=CALLER)
    assert (record.state, record.reason) == (State.FINISHED, EndReason.POISON)
    assert (await rig.inbox())[-1].entry == ending
    assert await rig.pending() == {}
    assert taken.attempt == 1


async def test_a_job_that_makes_tokens_between_its_crashes_ends_too(rig: Rig) -> None:
    """Progress clears `crashes`, never `deaths`."""
    taken, text = await rig.start()
    for death in range(MAX_DEATHS):
        worker = f"worker-{death}"
        if death:
            [entry] = await rig.adopt(worker)
            taken = await rig.take(entry, worker)
        await rig.step(text.row(taken.lease, death * PROVEN_TOKENS, (death + 1) * PROVEN_TOKENS))
        await rig.kill(worker if death else WORKER)
    [entry] = await rig.adopt()
    assert await rig.broker.take(entry, worker_id=OTHER_WORKER, lease=new_lease()) is NotTaken.POISON
    record = await rig.broker.record(text.generation_id, caller=CALLER)
    assert (record.reason, record.num_tokens) == (EndReason.POISON, MAX_DEATHS * PROVEN_TOKENS)


async def test_attempts_count_takes_and_crashes_do_not(rig: Rig) -> None:
    """A job that was handed back is taken as attempt 2, without a charge."""
    taken, text = await rig.start()
    await rig.broker.release(taken.entry, worker_id=WORKER, lease=taken.lease)
    [entry] = await rig.adopt()
    again = await rig.take(entry, OTHER_WORKER)
    record = await rig.fields(text.generation_id)
    assert (again.attempt, record["attempt"], record["crashes"]) == (2, "2", "0")


async def test_a_job_of_another_version_is_named(rig: Rig) -> None:
    """The worker is told that it cannot read the job; the lease is its own, so that it can end it."""
    submitted = await rig.submit()
    [entry] = await rig.deliver()
    body = make_job(submitted.generation_id).to_bytes().replace(b'"v":1', b'"v":999')
    await rig.rewrite(submitted.generation_id, job=body)
    with pytest.raises(MalformedMessage, match="job version 999"):
        await rig.broker.take(entry, worker_id=WORKER, lease=new_lease())
    with pytest.raises(MalformedMessage):
        Job.from_bytes(body)
