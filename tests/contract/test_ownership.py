"""release, reap, adopt, own_pending: an entry changes hands, and the pending list always names the record's owner."""

import pytest

from contract import keys
from contract.broker import MAX_CRASHES, PROVEN_TOKENS, RowOutcome
from tests.contract.rig import CALLER, CLASS, MODEL, OTHER_WORKER, QUEUE, WORKER, Rig, Text


async def test_a_dead_workers_generation_goes_on_elsewhere(rig: Rig) -> None:
    """It is free, charged one crash, and continues under another lease where the log ends."""
    taken, text = await rig.start()
    await rig.step(text.row(taken.lease, 0, 2))
    assert await rig.kill() == 1
    record = await rig.fields(text.generation_id)
    assert (record["state"], record["owner"], record["lease"], record["crashes"]) == ("free", "", "", "1")
    assert await rig.pending() == {taken.entry.entry_id: keys.FREE}
    assert await rig.adopt() == [taken.entry]
    assert await rig.pending() == {taken.entry.entry_id: OTHER_WORKER}
    again = await rig.take(taken.entry, OTHER_WORKER)
    assert (again.attempt, again.num_tokens, again.chain) == (2, 2, text.chains[2])
    assert again.lease != taken.lease
    assert (await rig.step(text.last_row(again.lease, 2, 4))).outcome is RowOutcome.DONE
    assert await rig.token_ids(text.generation_id) == [token.token_id for token in text.tokens]


async def test_who_has_beaten_since_is_not_reaped(rig: Rig) -> None:
    """None, and nothing has changed."""
    await rig.start()
    await rig.broker.worker_beat(WORKER, {})
    await rig.broker.worker_beat(WORKER, {})
    before = await rig.snapshot()
    assert await rig.broker.reap(WORKER, "1", MODEL) is None
    assert await rig.snapshot() == before
    assert await rig.broker.reap(WORKER, "2", MODEL) == 1


async def test_two_observers_may_reap_the_same_worker(rig: Rig) -> None:
    """The second finds nothing, and charges nothing again."""
    await rig.start()
    await rig.broker.worker_beat(WORKER, {})
    assert await rig.broker.reap(WORKER, "1", MODEL) == 1
    before = await rig.snapshot()
    assert await rig.broker.reap(WORKER, "1", MODEL) is None
    assert await rig.broker.reap(WORKER, "", MODEL) == 0
    assert await rig.snapshot() == before


async def test_a_worker_whose_heartbeat_expired_can_be_reaped(rig: Rig) -> None:
    """A consumer without heartbeat has the beat ''."""
    await rig.start()
    assert await rig.broker.reap(WORKER, "", MODEL) == 1


async def test_a_queued_job_of_a_dead_worker_is_not_charged(rig: Rig) -> None:
    """It was delivered but never ran; another takes it as attempt 1."""
    submitted = await rig.submit()
    [entry] = await rig.deliver()
    assert await rig.kill() == 1
    record = await rig.fields(submitted.generation_id)
    assert (record["state"], record["crashes"]) == ("queued", "0")
    assert await rig.adopt() == [entry]
    assert (await rig.take(entry, OTHER_WORKER)).attempt == 1


async def test_reaping_covers_every_class(rig: Rig) -> None:
    """And forgets the worker: consumer, heartbeat and place in the pool."""
    await rig.broker.worker_beat(WORKER, {"state": "ready"})
    for job_class in keys.CLASSES:
        await rig.start(job_class=job_class)
    assert await rig.broker.consumers(MODEL) == [WORKER]
    assert await rig.kill() == 3
    assert await rig.broker.consumers(MODEL) == []
    assert await rig.broker.pool() == []
    assert [entry.stream for entry in await rig.adopt(max_jobs=1)] == [keys.queue(MODEL, "high")]


async def test_more_entries_than_one_call_moves(rig: Rig) -> None:
    """None is lost: the consumer goes only when nothing is pending to it any more."""
    for _ in range(300):
        await rig.submit()
    await rig.deliver(count=300)
    assert await rig.kill() == 300
    assert list((await rig.pending()).values()) == [keys.FREE] * 300
    assert await rig.broker.consumers(MODEL) == []


async def test_a_reap_that_stops_halfway_keeps_the_consumer(rig: Rig) -> None:
    """A worker that wakes up between two calls is alive again, and keeps what had not been moved."""
    for _ in range(300):
        await rig.submit()
    await rig.deliver(count=300)
    where = [keys.worker(WORKER), keys.POOL, *(keys.queue(MODEL, each) for each in keys.CLASSES)]
    answer = await rig.broker._run("reap", where, [keys.TAG, WORKER, "", keys.WAKE])
    assert answer == [256, 1]
    await rig.broker.worker_beat(WORKER, {})
    assert await rig.broker.reap(WORKER, "", MODEL) is None
    assert sorted((await rig.pending()).values()) == [keys.FREE] * 256 + [WORKER] * 44
    assert await rig.broker.consumers(MODEL) == [WORKER]


async def test_a_pending_entry_that_left_its_stream_is_acked(rig: Rig) -> None:
    """By reap, adopt and own_pending alike: it can never be taken."""
    for _ in range(3):
        await rig.submit()
    entries = await rig.deliver(count=3)
    await rig.client.xdel(QUEUE, entries[0].entry_id)
    assert await rig.broker.own_pending(WORKER, MODEL) == entries[1:]
    await rig.client.xdel(QUEUE, entries[1].entry_id)
    assert await rig.kill() == 1
    await rig.client.xdel(QUEUE, entries[2].entry_id)
    assert await rig.adopt() == []
    assert await rig.pending() == {}


async def test_a_hand_back_is_not_charged(rig: Rig) -> None:
    """A draining worker releases under its lease; its own later steps are fenced."""
    taken, text = await rig.start()
    await rig.step(text.row(taken.lease, 0, 2))
    assert await rig.broker.release(taken.entry, worker_id=WORKER, lease=taken.lease)
    record = await rig.fields(text.generation_id)
    assert (record["state"], record["owner"], record["lease"], record["crashes"]) == ("free", "", "", "0")
    assert await rig.pending() == {taken.entry.entry_id: keys.FREE}
    assert (await rig.step(text.row(taken.lease, 2, 3))).outcome is RowOutcome.FENCED


async def test_the_same_release_twice_is_one(rig: Rig) -> None:
    """The second finds the entry pending to another, whether it is free or taken by then."""
    taken, _ = await rig.start()
    assert await rig.broker.release(taken.entry, worker_id=WORKER, lease=taken.lease)
    before = await rig.snapshot()
    assert not await rig.broker.release(taken.entry, worker_id=WORKER, lease=taken.lease)
    assert not await rig.broker.release(taken.entry, worker_id=WORKER, lease=None)
    assert await rig.snapshot() == before
    [entry] = await rig.adopt()
    again = await rig.take(entry, OTHER_WORKER)
    before = await rig.snapshot()
    assert not await rig.broker.release(taken.entry, worker_id=WORKER, lease=taken.lease)
    assert not await rig.broker.release(taken.entry, worker_id=OTHER_WORKER, lease=taken.lease)
    assert await rig.snapshot() == before
    assert again.attempt == 2


@pytest.mark.parametrize("was_taken", [False, True])
async def test_an_entry_that_is_not_held_is_released_whoever_leased_it(rig: Rig, was_taken: bool) -> None:
    """Reconciliation: the reply of the read, or of the take, was lost, so the worker knows no lease."""
    submitted = await rig.submit()
    [entry] = await rig.deliver()
    if was_taken:
        await rig.take(entry)
    assert await rig.broker.own_pending(WORKER, MODEL) == [entry]
    assert await rig.broker.release(entry, worker_id=WORKER, lease=None)
    assert await rig.broker.own_pending(WORKER, MODEL) == []
    record = await rig.fields(submitted.generation_id)
    assert (record["state"], record["lease"], record["crashes"]) == ("free" if was_taken else "queued", "", "0")
    assert await rig.adopt() == [entry]


async def test_the_release_of_an_ended_generation_drops_its_entry(rig: Rig) -> None:
    """Nobody is to adopt what is finished or gone."""
    submitted = await rig.submit()
    [entry] = await rig.deliver()
    await rig.client.delete(keys.record(submitted.generation_id))
    assert await rig.broker.release(entry, worker_id=WORKER, lease=None)
    assert (await rig.pending(), await rig.client.xlen(QUEUE)) == ({}, 0)


async def test_free_work_is_announced(rig: Rig) -> None:
    """By release and by a reap that moved something."""
    taken, _ = await rig.start()
    async with rig.broker.listen(keys.WAKE) as wakes:
        assert await anext(wakes) == keys.WAKE  # the subscription
        await rig.broker.release(taken.entry, worker_id=WORKER, lease=taken.lease)
        assert await anext(wakes) == keys.WAKE
        [entry] = await rig.adopt()
        await rig.take(entry, OTHER_WORKER)
        await rig.kill(OTHER_WORKER)
        assert await anext(wakes) == keys.WAKE


async def test_adoption_is_bounded_and_in_order(rig: Rig) -> None:
    """Higher classes first, and no more than the worker has slots."""
    for job_class in ("low", CLASS, "high"):
        for _ in range(2):
            await rig.submit(job_class=job_class)
        await rig.deliver(count=2, job_class=job_class)
    await rig.kill()
    adopted = await rig.adopt(max_jobs=3)
    assert [each.stream for each in adopted] == [keys.queue(MODEL, each) for each in ("high", "high", CLASS)]
    assert await rig.broker.own_pending(OTHER_WORKER, MODEL) == adopted
    assert len(await rig.adopt(max_jobs=8)) == 3
    assert await rig.adopt(max_jobs=8) == []


async def test_what_may_be_poison_runs_alone(rig: Rig) -> None:
    """At MAX_CRASHES - 1 it is told apart, at most one comes at a time, and none while another runs alone."""
    suspects = [(await rig.start(job_class=job_class))[1].generation_id for job_class in ("high", "normal")]
    _, once = await rig.start(job_class="low")
    await rig.kill()
    for suspect in suspects:
        await rig.rewrite(suspect, crashes=MAX_CRASHES - 1)
    adopted = await rig.adopt(may_run_alone=False)
    assert [(each.generation_id, each.runs_alone) for each in adopted] == [(once.generation_id, False)]
    for suspect in suspects:
        assert [(each.generation_id, each.runs_alone) for each in await rig.adopt()] == [(suspect, True)]
    assert await rig.adopt() == []


async def test_a_crash_is_charged_to_the_one_that_ran_alone(rig: Rig) -> None:
    """What stood still beside it is freed without a charge; once it has proved itself all are charged again."""
    _, suspect = await rig.start()
    await rig.kill()
    await rig.rewrite(suspect.generation_id, crashes=MAX_CRASHES - 1)
    _, beside = await rig.start(OTHER_WORKER)
    [entry] = await rig.adopt()
    await rig.take(entry, OTHER_WORKER)
    await rig.kill(OTHER_WORKER)
    assert await crashes_of(rig, suspect, beside) == [MAX_CRASHES, 0]

    await rig.rewrite(suspect.generation_id, crashes=MAX_CRASHES - 1)
    for entry in await rig.adopt("worker-c"):
        taken = await rig.take(entry, "worker-c")
        if entry.generation_id == suspect.generation_id:
            await rig.step(suspect.row(taken.lease, 0, PROVEN_TOKENS))
    await rig.kill("worker-c")
    assert await crashes_of(rig, suspect, beside) == [1, 1]


async def test_new_tokens_clear_earlier_crashes(rig: Rig) -> None:
    """PROVEN_TOKENS of one attempt do; those of earlier attempts do not count."""
    taken, text = await rig.start()
    await rig.step(text.row(taken.lease, 0, PROVEN_TOKENS))
    await rig.kill()
    [entry] = await rig.adopt()
    again = await rig.take(entry, OTHER_WORKER)
    last = 2 * PROVEN_TOKENS - 1
    await rig.step(text.row(again.lease, PROVEN_TOKENS, last))
    assert await crashes_of(rig, text) == [1]
    await rig.step(text.row(again.lease, last, last + 1))
    assert await crashes_of(rig, text) == [0]


async def crashes_of(rig: Rig, *texts: Text) -> list[int]:
    """What each is charged with now."""
    return [int((await rig.fields(text.generation_id))["crashes"]) for text in texts]


async def test_a_free_generation_that_ended_is_gone(rig: Rig) -> None:
    """A cancel acks what is free, so that nobody adopts it."""
    _, text = await rig.start()
    await rig.kill()
    await rig.broker.cancel(text.generation_id, caller=CALLER)
    assert await rig.adopt() == []
    assert (await rig.pending(), await rig.client.xlen(QUEUE)) == ({}, 0)


async def test_the_leases_of_many_generations(rig: Rig) -> None:
    """In one call: lease, and whether a cancel is wanted; ('', False) for one that is gone."""
    first, _ = await rig.start()
    second, text = await rig.start()
    await rig.broker.cancel(text.generation_id, caller=CALLER)
    ids = [first.job.generation_id, text.generation_id, keys.new_generation_id()]
    assert await rig.broker.leases(ids) == [(first.lease, False), (second.lease, True), ("", False)]
    assert await rig.broker.leases([]) == []
