"""A key that something else has overwritten with another type harms the generation it belongs to, and no other."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from contract import keys
from contract.broker import Delivered, NotTaken, RowOutcome, ServerUnfit, State, Taken, new_lease
from contract.errors import UnknownGeneration, Unreadable
from contract.messages import UNREADABLE, Ending, MalformedMessage
from tests.contract.rig import CALLER, GATEWAY, MODEL, OTHER_WORKER, QUEUE, WORKER, Rig, Text


async def spoil(rig: Rig, key: str) -> None:
    """What somebody does by hand, or a program that takes this server for its own. None of our keys is a list."""
    await rig.client.delete(key)
    await rig.client.rpush(key, "spoiled")
    await rig.client.pexpire(key, 60_000)


@dataclass(frozen=True, slots=True)
class Running:
    """A generation that has three tokens."""

    taken: Taken
    text: Text

    @property
    def generation_id(self) -> str:
        """Its id."""
        return self.text.generation_id


async def running(rig: Rig) -> Running:
    """Of the first worker."""
    taken, text = await rig.start()
    await rig.step(text.row(taken.lease, 0, 3))
    return Running(taken, text)


async def take_of(rig: Rig, entry: Delivered, worker: str = OTHER_WORKER) -> Taken | NotTaken:
    """Under a new lease."""
    return await rig.broker.take(entry, worker_id=worker, lease=new_lease())


async def test_a_step_fences_its_row_alone(rig: Rig) -> None:
    """And so does one whose log was overwritten; the generations beside them go on."""
    first, second, third, fourth = [await running(rig) for _ in range(4)]
    await spoil(rig, keys.record(second.generation_id))
    await spoil(rig, keys.log(third.generation_id))
    replies = await rig.broker.step([each.text.row(each.taken.lease, 3, 5) for each in (first, second, third, fourth)])
    fenced, ok = RowOutcome.FENCED, RowOutcome.OK
    assert [reply.outcome for reply in replies] == [ok, fenced, fenced, ok]
    assert await rig.broker.leases([each.generation_id for each in (first, second, fourth)]) == [
        (first.taken.lease, False),
        ("", False),
        (fourth.taken.lease, False),
    ]
    standings = await rig.broker.standings([first.generation_id, second.generation_id])
    assert standings[0] is not None
    assert (standings[0].num_tokens, standings[1]) == (5, None)


@pytest.mark.parametrize("by", ["reap", "drain", "reconciliation"])
async def test_a_spoiled_record_is_set_aside_by_the_next_take(rig: Rig, by: str) -> None:
    """However its entry becomes free; the other's is as free as ever. Its log says how it ended."""
    spoiled, other = await running(rig), await running(rig)
    await spoil(rig, keys.record(spoiled.generation_id))
    for each in (spoiled, other):
        lease = None if by == "reconciliation" else each.taken.lease
        if by != "reap":
            assert await rig.broker.release(each.taken.entry, worker_id=WORKER, lease=lease)
    if by == "reap":
        assert await rig.kill() == 2

    first, second = await rig.adopt()
    assert await take_of(rig, first) is NotTaken.DAMAGED
    assert isinstance(await take_of(rig, second), Taken)
    [dead] = await rig.broker.dead.all()
    assert (dead.generation_id, dead.record) == (spoiled.generation_id, None)
    assert "WRONGTYPE" in dead.why
    ending = await rig.broker.read_ending(spoiled.generation_id)
    assert ending is not None
    assert (ending.num_tokens, ending.error) == (3, UNREADABLE)
    assert await rig.token_ids(spoiled.generation_id) == [3, 4, 5]
    assert list(await rig.pending()) == [other.taken.entry.entry_id]


async def test_a_record_that_was_spoiled_in_the_queue_is_set_aside(rig: Rig) -> None:
    """Its log has nothing but the end; who asks for it is told, before and afterwards."""
    submitted = await rig.submit()
    await spoil(rig, keys.record(submitted.generation_id))
    for _ in range(2):
        with pytest.raises(Unreadable):
            await rig.broker.attach(submitted.generation_id, caller=CALLER, gateway_id=GATEWAY)
        with pytest.raises(Unreadable):
            await rig.broker.cancel(submitted.generation_id, caller=CALLER)
        with pytest.raises(Unreadable):
            await rig.submit(submitted.generation_id)
        await rig.broker.leave(submitted.generation_id, gateway_id=GATEWAY)
        assert not await rig.broker.expire(submitted.generation_id)
        for entry in await rig.broker.read_jobs(WORKER, MODEL, "normal", count=1, block_ms=0):
            assert await take_of(rig, entry, WORKER) is NotTaken.DAMAGED
    [ending] = await rig.broker.read_log(submitted.generation_id)
    assert isinstance(ending, Ending)
    assert await rig.client.pttl(keys.record(submitted.generation_id)) > 0
    assert (await rig.pending(), await rig.client.xlen(QUEUE)) == ({}, 0)


async def test_both_its_record_and_its_log_may_be_spoiled(rig: Rig) -> None:
    """Nothing of it is left; it ends all the same."""
    spoiled = await running(rig)
    for key in (keys.record(spoiled.generation_id), keys.log(spoiled.generation_id)):
        await spoil(rig, key)
    await rig.kill()
    [entry] = await rig.adopt()
    assert await take_of(rig, entry) is NotTaken.DAMAGED
    assert [type(each) for each in await rig.broker.read_log(spoiled.generation_id)] == [Ending]


async def test_who_reads_a_spoiled_log_is_told(rig: Rig) -> None:
    """As of damaged bytes."""
    spoiled = await running(rig)
    await spoil(rig, keys.log(spoiled.generation_id))
    with pytest.raises(MalformedMessage):
        await rig.broker.read_log(spoiled.generation_id)
    with pytest.raises(Unreadable):
        await rig.broker.read_ending(spoiled.generation_id)


async def announce(rig: Rig) -> None:
    """As a worker does that finds its announcement gone."""
    if not await rig.broker.is_announced(MODEL, "bundle-digest"):
        await rig.broker.announce(MODEL, "bundle-digest", b"bundle")


async def beat(rig: Rig) -> None:
    """As every process does."""
    await rig.broker.worker_beat(WORKER, {"model": MODEL})
    await rig.broker.gateway_beat(GATEWAY)


async def read_queue(rig: Rig) -> None:
    """As a worker does all the time."""
    await rig.broker.read_jobs(WORKER, MODEL, "normal", count=1, block_ms=0)


SHARED: dict[str, Callable[[Rig], Awaitable[None]]] = {
    QUEUE: read_queue,
    keys.inbox(GATEWAY): beat,
    keys.worker(WORKER): beat,
    keys.gateway(GATEWAY): beat,
    keys.POOL: beat,
    keys.GATEWAYS: beat,
    keys.MODELS: announce,
    keys.model(MODEL): announce,
    keys.bundle("bundle-digest"): announce,
    keys.caller(CALLER): beat,
    keys.DEAD: beat,
}


async def test_a_shared_key_is_made_anew(rig: Rig) -> None:
    """By who writes it; until then all who read it do without. Generations that run go on to their end."""
    for key, mend in SHARED.items():
        await beat(rig)
        one = await running(rig)
        await spoil(rig, key)
        await everybody_looks(rig)
        await mend(rig)
        await everybody_looks(rig)
        assert (await rig.step(one.text.row(one.taken.lease, 3, 5))).outcome is RowOutcome.OK, key
        assert (await rig.step(one.text.last_row(one.taken.lease, 5, 6))).outcome is RowOutcome.DONE, key
        two = await running(rig)
        assert await rig.broker.dead.set_aside(two.generation_id, lease=two.taken.lease, why="a reason"), key
        assert two.generation_id in [each.generation_id for each in await rig.broker.dead.all()], key
        assert [each.worker_id for each in await rig.broker.pool()] == [WORKER], key
        assert [each.gateway_id for each in await rig.broker.gateways()] == [GATEWAY], key
        assert await rig.broker.models() == {MODEL: "bundle-digest"}, key
        assert two.generation_id in [row.generation_id for row in await rig.inbox()], key


async def everybody_looks(rig: Rig) -> None:
    """Every call that a process makes by itself, again and again: none may fail."""
    await rig.broker.pool()
    await rig.broker.gateways()
    await rig.broker.models([MODEL])
    await rig.broker.bundle("bundle-digest")
    await rig.broker.is_announced(MODEL, "bundle-digest")
    await rig.broker.dead.count()
    await rig.broker.dead.all()
    await rig.broker.queue_depths([MODEL])
    await rig.broker.consumers(MODEL)
    await rig.broker.own_pending(WORKER, MODEL)
    await rig.broker.adopt(OTHER_WORKER, MODEL, max_jobs=1, may_run_alone=True)
    assert await rig.broker.reap("nobody", "", MODEL) == 0


async def test_a_worker_whose_beat_is_spoiled_can_be_reaped(rig: Rig) -> None:
    """It has died: nobody makes it anew."""
    spoiled = await running(rig)
    await beat(rig)
    await spoil(rig, keys.worker(WORKER))
    assert await rig.broker.reap(WORKER, "", MODEL) == 1
    [entry] = await rig.adopt()
    assert entry.generation_id == spoiled.generation_id
    assert isinstance(await take_of(rig, entry), Taken)


async def test_an_entry_of_a_queue_that_is_gone_is_lost(rig: Rig) -> None:
    """Between its delivery and its take, or its release."""
    submitted = await rig.submit()
    [entry] = await rig.deliver()
    await spoil(rig, QUEUE)
    assert await take_of(rig, entry, WORKER) is NotTaken.LOST
    assert not await rig.broker.release(entry, worker_id=WORKER, lease=None)
    assert (await rig.broker.cancel(submitted.generation_id, caller=CALLER))[0] is State.FINISHED


async def test_a_spoiled_inbox_is_a_malformed_message(rig: Rig) -> None:
    """Its reader goes on behind it; the next beat has another epoch, so that every stream reads its log."""
    epoch = await rig.broker.gateway_beat(GATEWAY)
    await spoil(rig, keys.inbox(GATEWAY))
    with pytest.raises(MalformedMessage):
        await rig.broker.read_inbox(GATEWAY, "0", block_ms=1)
    assert await rig.broker.gateway_beat(GATEWAY) != epoch
    assert await rig.inbox() == []


async def test_a_herd_whose_shape_is_spoiled_is_refused(rig: Rig) -> None:
    """At the start, by the key's name: nothing tells what the herd was."""
    await spoil(rig, keys.META)
    with pytest.raises(ServerUnfit, match="meta is none of ours"):
        await rig.broker.check_server()
    await rig.client.delete(keys.META)


async def test_another_callers_is_still_unknown(rig: Rig) -> None:
    """Only a record that says nothing of its caller is told of to all."""
    submitted = await rig.submit()
    with pytest.raises(UnknownGeneration):
        await rig.broker.record(submitted.generation_id, caller="another")
