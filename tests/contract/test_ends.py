"""cancel, leave, expire: every way a generation ends from outside."""

import pytest

from contract import keys
from contract.broker import NotTaken, RowOutcome, State, Taken, new_lease
from contract.errors import UnknownGeneration
from contract.messages import Ending, EndReason
from tests.contract.rig import CALLER, GATEWAY, OTHER_WORKER, QUEUE, WORKER, Rig, Text

ORPHAN_GRACE_MS = 15_000


async def ending_of(rig: Rig, generation_id: str) -> Ending:
    """The terminal entry, which must be there."""
    entry = (await rig.broker.read_log(generation_id))[-1]
    assert isinstance(entry, Ending)
    return entry


@pytest.mark.parametrize("state", [State.QUEUED, State.FREE])
async def test_a_cancel_ends_what_nobody_runs(rig: Rig, state: State) -> None:
    """At once: log, record and reader agree, and a second cancel changes nothing."""
    if state is State.QUEUED:
        generation_id = (await rig.submit()).generation_id
    else:
        generation_id = (await rig.start())[1].generation_id
        await rig.kill()
    assert await rig.broker.cancel(generation_id, caller=CALLER) == (State.FINISHED, EndReason.CANCELLED)
    ending = await ending_of(rig, generation_id)
    assert ending.reason is EndReason.CANCELLED
    assert (await rig.inbox())[-1].entry == ending
    before = await rig.snapshot()
    assert await rig.broker.cancel(generation_id, caller=CALLER) == (State.FINISHED, EndReason.CANCELLED)
    assert await rig.snapshot() == before


async def test_a_cancel_of_a_delivered_job_takes_it_from_its_worker(rig: Rig) -> None:
    """The worker that was about to take it has lost it."""
    submitted = await rig.submit()
    [entry] = await rig.deliver()
    await rig.broker.cancel(submitted.generation_id, caller=CALLER)
    assert await rig.broker.take(entry, worker_id=WORKER, lease=new_lease()) is NotTaken.LOST
    assert (await rig.pending(), await rig.client.xlen(QUEUE)) == ({}, 0)


async def test_a_cancel_of_a_running_generation_tells_its_owner(rig: Rig) -> None:
    """The record carries the wish, the owner's channel a nudge; the second cancel is silent."""
    _, text = await rig.start()
    async with rig.broker.listen(keys.nudge(WORKER)) as nudges:
        assert await anext(nudges) == keys.nudge(WORKER)  # the subscription
        assert await rig.broker.cancel(text.generation_id, caller=CALLER) == (State.RUNNING, None)
        assert await anext(nudges) == keys.nudge(WORKER)
    before = await rig.snapshot()
    assert await rig.broker.cancel(text.generation_id, caller=CALLER) == (State.RUNNING, None)
    assert await rig.snapshot() == before


async def test_a_cancel_whose_owner_dies_is_carried_out_by_the_next(rig: Rig) -> None:
    """take ends it instead of running it."""
    _, text = await rig.start()
    await rig.broker.cancel(text.generation_id, caller=CALLER)
    await rig.kill()
    [entry] = await rig.adopt()
    assert await rig.broker.take(entry, worker_id=OTHER_WORKER, lease=new_lease()) is NotTaken.DROPPED
    assert (await ending_of(rig, text.generation_id)).reason is EndReason.CANCELLED


@pytest.mark.parametrize("state", [State.RUNNING, State.FREE])
async def test_a_cancel_that_nobody_carries_out_is_closed_by_anybody(rig: Rig, state: State) -> None:
    """After a grace, by expire; an owner is fenced by it. One that was handed back meanwhile waits for no worker."""
    taken, text = await rig.start()
    await rig.broker.cancel(text.generation_id, caller=CALLER)
    if state is State.FREE:
        assert await rig.broker.release(taken.entry, worker_id=WORKER, lease=taken.lease)
    assert not await rig.broker.expire(text.generation_id)
    since_ms = int((await rig.fields(text.generation_id))["cancel"])
    await rig.rewrite(text.generation_id, cancel=since_ms - 2001)
    [standing] = await rig.broker.standings([text.generation_id])
    assert standing is not None
    assert (standing.state, standing.cancel_ms) == (state, since_ms - 2001)
    assert await rig.broker.expire(text.generation_id)
    assert (await ending_of(rig, text.generation_id)).reason is EndReason.CANCELLED
    assert (await rig.step(text.row(taken.lease, 0, 1))).outcome is RowOutcome.FENCED
    assert await rig.pending() == {}


async def test_a_cancel_said_again_after_the_grace_ends_it(rig: Rig) -> None:
    """So who has no stream is not left waiting either. The word of an earlier version has no time: it is long ago."""
    for cancel in ("1", str(await rig.broker.now_ms() - 2001)):
        _, text = await rig.start()
        await rig.broker.cancel(text.generation_id, caller=CALLER)
        await rig.rewrite(text.generation_id, cancel=cancel)
        assert await rig.broker.cancel(text.generation_id, caller=CALLER) == (State.FINISHED, EndReason.CANCELLED)


async def test_a_cancel_that_comes_too_late_tells_the_true_end(rig: Rig) -> None:
    """The first terminal entry wins."""
    taken, text = await rig.start()
    await rig.broker.cancel(text.generation_id, caller=CALLER)
    await rig.step(text.last_row(taken.lease, 0, 1))
    assert await rig.broker.cancel(text.generation_id, caller=CALLER) == (State.FINISHED, EndReason.DONE)


@pytest.mark.parametrize("caller", [CALLER, "caller-b"])
async def test_nobody_cancels_what_is_not_theirs(rig: Rig, caller: str) -> None:
    """Another caller's generation, and one that does not exist, look the same."""
    submitted = await rig.submit(caller="caller-c")
    for generation_id in (submitted.generation_id, keys.new_generation_id()):
        before = await rig.snapshot()
        with pytest.raises(UnknownGeneration):
            await rig.broker.cancel(generation_id, caller=caller)
        assert await rig.snapshot() == before


async def test_without_window_the_last_leave_is_a_cancel(rig: Rig) -> None:
    """Not the first of two; unowned it ends at once."""
    submitted = await rig.submit()
    await rig.broker.attach(submitted.generation_id, caller=CALLER, gateway_id="gateway-b")
    await rig.broker.leave(submitted.generation_id, gateway_id=GATEWAY)
    assert (await rig.fields(submitted.generation_id))["state"] == "queued"
    await rig.broker.leave(submitted.generation_id, gateway_id="gateway-b")
    assert (await ending_of(rig, submitted.generation_id)).reason is EndReason.CANCELLED


async def test_without_window_the_owner_is_told_to_cancel(rig: Rig) -> None:
    """Its next step says so."""
    taken, text = await rig.start()
    await rig.broker.leave(text.generation_id, gateway_id=GATEWAY)
    assert (await rig.step(text.row(taken.lease, 0, 1))).cancel
    assert await rig.broker.leases([text.generation_id]) == [(taken.lease, True)]


async def test_with_a_window_a_reader_may_come_back(rig: Rig) -> None:
    """Until it is over the generation runs on; an attach stops the clock."""
    taken, text = await rig.start(window_ms=30_000)
    await rig.broker.leave(text.generation_id, gateway_id=GATEWAY)
    assert not (await rig.step(text.row(taken.lease, 0, 1))).cancel
    await rig.broker.attach(text.generation_id, caller=CALLER, gateway_id="gateway-b")
    record = await rig.fields(text.generation_id)
    assert (record["unread_since"], record["readers"]) == ("", "gateway-b")


async def test_the_same_leave_twice_is_one(rig: Rig) -> None:
    """A retry does not begin the window anew."""
    _, text = await rig.start(window_ms=30_000)
    await rig.broker.leave(text.generation_id, gateway_id=GATEWAY)
    await rig.rewrite(text.generation_id, unread_since=12345)
    before = await rig.snapshot()
    await rig.broker.leave(text.generation_id, gateway_id=GATEWAY)
    assert await rig.snapshot() == before


async def test_a_passed_window_cancels_with_the_next_step(rig: Rig) -> None:
    """The reply says so, and so does the record."""
    taken, text = await rig.start(window_ms=30_000)
    await rig.broker.leave(text.generation_id, gateway_id=GATEWAY)
    await rig.rewrite(text.generation_id, unread_since=await rig.broker.now_ms() - 30_100)
    assert (await rig.step(text.row(taken.lease, 0, 1))).cancel
    assert await rig.broker.leases([text.generation_id]) == [(taken.lease, True)]


async def test_a_passed_window_ends_at_the_take(rig: Rig) -> None:
    """A queued generation that nobody reads is not begun."""
    submitted = await rig.submit(window_ms=30_000)
    await rig.broker.leave(submitted.generation_id, gateway_id=GATEWAY)
    await rig.rewrite(submitted.generation_id, unread_since=await rig.broker.now_ms() - 30_100)
    [entry] = await rig.deliver()
    assert await rig.broker.take(entry, worker_id=WORKER, lease=new_lease()) is NotTaken.DROPPED
    assert (await ending_of(rig, submitted.generation_id)).reason is EndReason.CANCELLED


async def test_a_leave_of_a_finished_or_unknown_generation_is_nothing(rig: Rig) -> None:
    """It may always come late."""
    taken, text = await rig.start()
    await rig.step(text.last_row(taken.lease, 0, 1))
    before = await rig.snapshot()
    await rig.broker.leave(text.generation_id, gateway_id=GATEWAY)
    await rig.broker.leave(keys.new_generation_id(), gateway_id=GATEWAY)
    assert await rig.snapshot() == before


async def test_a_dead_gateways_generation_is_cancelled_after_a_grace(rig: Rig) -> None:
    """Its inbox has expired: the step that notices starts the clock, a step after the grace cancels."""
    taken, text = await rig.start()
    await rig.broker.gateway_gone(GATEWAY)
    assert not (await rig.step(text.row(taken.lease, 0, 1))).cancel
    unread_since = int((await rig.fields(text.generation_id))["unread_since"])
    await rig.rewrite(text.generation_id, unread_since=unread_since - ORPHAN_GRACE_MS + 2000)
    assert not (await rig.step(text.row(taken.lease, 1, 2))).cancel
    await rig.rewrite(text.generation_id, unread_since=unread_since - ORPHAN_GRACE_MS - 2000)
    assert (await rig.step(text.row(taken.lease, 2, 3))).cancel


async def test_a_dead_gateways_window_counts_if_it_is_longer_than_the_grace(rig: Rig) -> None:
    """Also at the take of another attempt."""
    taken, text = await rig.start(window_ms=60_000)
    await rig.broker.gateway_gone(GATEWAY)
    await rig.step(text.row(taken.lease, 0, 1))
    now_ms = await rig.broker.now_ms()
    await rig.rewrite(text.generation_id, unread_since=now_ms - ORPHAN_GRACE_MS - 2000)
    assert not (await rig.step(text.row(taken.lease, 1, 2))).cancel
    await rig.kill()
    [entry] = await rig.adopt()
    await rig.rewrite(text.generation_id, unread_since=now_ms - 60_001)
    assert await rig.broker.take(entry, worker_id=OTHER_WORKER, lease=new_lease()) is NotTaken.DROPPED


async def test_a_gateway_that_comes_back_stops_the_clock(rig: Rig) -> None:
    """Its inbox stands again, so the next step finds a reader; one of two readers is enough."""
    taken, text = await rig.start()
    await rig.broker.gateway_gone(GATEWAY)
    await rig.step(text.row(taken.lease, 0, 1))
    assert (await rig.fields(text.generation_id))["unread_since"]
    await rig.broker.attach(text.generation_id, caller=CALLER, gateway_id="gateway-b")
    await rig.step(text.row(taken.lease, 1, 2))
    assert (await rig.fields(text.generation_id))["unread_since"]
    await rig.broker.gateway_beat(GATEWAY)
    await rig.step(text.row(taken.lease, 2, 3))
    assert (await rig.fields(text.generation_id))["unread_since"] == ""


@pytest.mark.parametrize("state", list(State))
async def test_only_after_deadline_and_grace_anybody_may_end_it(rig: Rig, state: State) -> None:
    """In every state but finished; an owner is fenced by it, a second call does nothing."""
    taken, text = await expirable(rig, state)
    generation_id = text.generation_id
    now_ms = await rig.broker.now_ms()
    await rig.rewrite(generation_id, deadline=now_ms - 500)
    before = await rig.snapshot()
    assert not await rig.broker.expire(generation_id)
    assert await rig.snapshot() == before
    await rig.rewrite(generation_id, deadline=now_ms - 2001)
    assert await rig.broker.expire(generation_id) is (state is not State.FINISHED)
    assert not await rig.broker.expire(generation_id)
    ending = await ending_of(rig, generation_id)
    assert ending.reason is (EndReason.DONE if state is State.FINISHED else EndReason.DEADLINE)
    assert await rig.pending() == {}
    if taken is not None and state is not State.FINISHED:
        assert (await rig.step(text.row(taken.lease, 0, 1))).outcome is RowOutcome.FENCED


async def expirable(rig: Rig, state: State) -> tuple[Taken | None, Text]:
    """A generation in this state, and its last lease."""
    if state is State.QUEUED:
        return None, Text((await rig.submit()).generation_id)
    taken, text = await rig.start()
    if state is State.FREE:
        await rig.kill()
    if state is State.FINISHED:
        await rig.step(text.last_row(taken.lease, 0, 1))
    return taken, text


async def test_an_unknown_generation_does_not_expire(rig: Rig) -> None:
    """There is nothing to close."""
    assert not await rig.broker.expire(keys.new_generation_id())
