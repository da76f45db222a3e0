"""submit: create or attach in one script, bounded, and only for the caller that owns the generation."""

import pytest

from contract import keys
from contract.broker import NotTaken, State, new_lease
from contract.errors import Overloaded, QuotaExceeded, RequestIdReused, UnknownGeneration
from contract.messages import EndReason
from tests.contract.rig import CALLER, CLASS, GATEWAY, MODEL, QUEUE, WORKER, Rig, Text


async def test_a_job_is_queued_with_its_record(rig: Rig) -> None:
    """One entry in the queue, one record that names it, and the deadline by Redis' clock."""
    submitted = await rig.submit(max_time_ms=5000, window_ms=30_000)
    record = await rig.fields(submitted.generation_id)
    assert (submitted.attached, submitted.state, submitted.position) == (False, State.QUEUED, 0)
    assert [entry.decode() for entry, _ in await rig.client.xrange(QUEUE)] == [record["entry"]]
    assert record["state"] == "queued"
    assert record["owner"] == record["lease"] == ""
    assert record["readers"] == GATEWAY
    assert int(record["deadline"]) == submitted.accepted_ms + 5000


async def test_the_same_call_twice_queues_once(rig: Rig) -> None:
    """A retry after a lost reply attaches to what its first call made."""
    first = await rig.submit()
    before = await rig.snapshot()
    again = await rig.submit(first.generation_id)
    assert again.attached
    assert again.accepted_ms == first.accepted_ms
    assert await rig.snapshot() == before


async def test_a_second_gateway_attaches(rig: Rig) -> None:
    """It becomes a reader of what stands, even of a running generation."""
    taken, text = await rig.start()
    await rig.step(text.row(taken.lease, 0, 3))
    again = await rig.submit(text.generation_id, gateway_id="gateway-b")
    assert (again.attached, again.state, again.num_tokens) == (True, State.RUNNING, 3)
    assert (await rig.fields(text.generation_id))["readers"] == f"{GATEWAY},gateway-b"


async def test_another_body_under_the_same_id_is_refused(rig: Rig) -> None:
    """The digest tells."""
    first = await rig.submit()
    with pytest.raises(RequestIdReused):
        await rig.submit(first.generation_id, digest="digest-b")


async def test_another_caller_sees_nothing(rig: Rig) -> None:
    """Not even that the id is taken: the caller is compared before the digest."""
    first = await rig.submit()
    with pytest.raises(UnknownGeneration):
        await rig.submit(first.generation_id, caller="caller-b", digest="digest-b")


async def test_a_full_queue_refuses(rig: Rig) -> None:
    """Only what waits counts: a delivered job makes room, and an attach needs none."""
    first = await rig.submit(max_waiting=2)
    await rig.submit(max_waiting=2)
    before = await rig.snapshot()
    with pytest.raises(Overloaded, match="2 requests are waiting for this model; 2 may wait"):
        await rig.submit(max_waiting=2)
    assert await rig.snapshot() == before
    assert (await rig.submit(first.generation_id, max_waiting=2)).attached
    await rig.deliver()
    assert not (await rig.submit(max_waiting=2)).attached


async def test_the_queue_is_made_if_it_is_gone(rig: Rig) -> None:
    """A server that lost the stream gets it back with its group, for the submitter and for the reader."""
    await rig.client.delete(QUEUE)
    assert await rig.broker.read_jobs("worker-a", MODEL, CLASS, count=1, block_ms=0) == []
    await rig.client.delete(QUEUE)
    await rig.submit()
    await rig.deliver()


async def test_a_place_minus_what_was_delivered_is_the_position(rig: Rig) -> None:
    """So one look at the queue tells it for every job that waits; also where entries were delivered and deleted."""
    first = await rig.submit()
    [entry] = await rig.deliver()
    taken = await rig.take(entry)
    await rig.step(Text(first.generation_id).last_row(taken.lease, 0, 1))
    waiting = [await rig.submit() for _ in range(3)]
    assert [each.position for each in waiting] == [0, 1, 2]
    for num_gone in range(3):
        num_delivered = (await rig.broker.queue_depths([MODEL]))[MODEL, CLASS].num_delivered
        assert [each.place - num_delivered for each in waiting] == [-num_gone, 1 - num_gone, 2 - num_gone]
        await rig.deliver()


async def test_whoever_attaches_learns_the_place(rig: Rig) -> None:
    """By the id, or by the same request again."""
    await rig.submit()
    second = await rig.submit()
    record = await rig.broker.attach(second.generation_id, caller=CALLER, gateway_id=GATEWAY)
    assert record.place == (await rig.submit(second.generation_id)).place == second.place == 1


async def test_tokens_that_wait_are_bounded(rig: Rig) -> None:
    """Of prompts and outputs together (66 each here); what is delivered waits no more, deleted or not."""
    for _ in range(3):
        await rig.submit(max_waiting_tokens=200)
    with pytest.raises(Overloaded, match="198 tokens are waiting for this model; 263 may wait"):
        await rig.submit(max_waiting_tokens=263)
    assert not (await rig.submit(max_waiting_tokens=264)).attached
    [first, _] = await rig.deliver(count=2)
    taken = await rig.take(first)
    await rig.step(Text(first.generation_id).last_row(taken.lease, 0, 1))
    with pytest.raises(Overloaded, match="132 tokens"):
        await rig.submit(max_waiting_tokens=197)
    assert not (await rig.submit(max_waiting_tokens=198)).attached
    await rig.deliver(count=3)
    assert not (await rig.submit(max_waiting_tokens=1)).attached, "one that waits alone may have any number"


async def test_a_caller_holds_so_many_and_no_more(rig: Rig) -> None:
    """Counted until each has ended, in whatever way; another caller is not concerned; a repeated call adds nothing."""
    first, second = await rig.submit(max_held=2), await rig.submit(max_held=2)
    with pytest.raises(QuotaExceeded, match="2 generations that have not ended; 2 are allowed"):
        await rig.submit(max_held=2)
    assert (await rig.submit(second.generation_id, max_held=2)).attached
    assert not (await rig.submit(max_held=2, caller="caller-b")).attached
    await rig.broker.cancel(first.generation_id, caller=CALLER)
    third = await rig.submit(max_held=2)
    assert await rig.client.zcard(keys.caller(CALLER)) == 2
    entries = {entry.generation_id: entry for entry in await rig.deliver(count=4)}
    taken = await rig.take(entries[second.generation_id])
    await rig.step(Text(second.generation_id).last_row(taken.lease, 0, 1))
    await rig.rewrite(third.generation_id, deadline=1)
    assert await rig.broker.expire(third.generation_id)
    assert await rig.client.zcard(keys.caller(CALLER)) == 0


async def test_a_record_that_expired_is_held_by_nobody(rig: Rig) -> None:
    """The server forgot it without an end."""
    await rig.submit(max_held=1)
    await rig.client.zadd(
        keys.caller(CALLER), {member: 1 async for member, _ in rig.client.zscan_iter(keys.caller(CALLER))}
    )
    assert not (await rig.submit(max_held=1)).attached


async def test_the_lag_of_the_group_stays_known(rig: Rig) -> None:
    """Autoscaling reads it: cancelled, finished and expired entries must not blind it."""
    for _ in range(5):
        await rig.submit()
    cancelled = await rig.submit()
    await rig.submit()
    await rig.broker.cancel(cancelled.generation_id, caller=CALLER)
    [entry] = await rig.deliver()
    taken = await rig.take(entry)
    await rig.step(Text(entry.generation_id).last_row(taken.lease, 0, 1))
    [group] = await rig.client.xinfo_groups(QUEUE)
    assert group["lag"] == 6
    await rig.deliver(count=6)
    [group] = await rig.client.xinfo_groups(QUEUE)
    assert group["lag"] == 0


async def test_an_ended_generation_can_be_attached_to(rig: Rig) -> None:
    """Submitting a finished request again finds its end, not a second generation."""
    submitted = await rig.submit()
    await rig.broker.cancel(submitted.generation_id, caller=CALLER)
    again = await rig.submit(submitted.generation_id)
    assert again.state is State.FINISHED
    assert (await rig.broker.record(submitted.generation_id, caller=CALLER)).reason is EndReason.CANCELLED


async def test_a_generation_that_nobody_reads_yet(rig: Rig) -> None:
    """Without a gateway the window begins at once; a repeated call neither becomes a reader nor moves its begin."""
    first = await rig.submit(gateway_id="", window_ms=30_000)
    before = await rig.fields(first.generation_id)
    again = await rig.submit(first.generation_id, gateway_id="", window_ms=30_000)
    assert (before["readers"], before["unread_since"]) == ("", before["accepted_ms"])
    assert again.attached
    assert await rig.fields(first.generation_id) == before
    await rig.rewrite(first.generation_id, unread_since=1)
    [entry] = await rig.deliver()
    assert await rig.broker.take(entry, worker_id=WORKER, lease=new_lease()) is NotTaken.DROPPED
