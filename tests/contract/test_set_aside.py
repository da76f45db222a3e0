"""A generation that its worker cannot read is ended and listed, whatever of it is damaged; by its owner alone."""

import pytest

from contract import keys
from contract.broker import NotTaken, State, new_lease
from contract.messages import EndReason, MalformedMessage
from tests.contract.rig import CALLER, OTHER_WORKER, WORKER, Rig


async def ended(rig: Rig, generation_id: str) -> str:
    """It is finished, with FAILED, and nobody is given it any more; why, by the list."""
    record = await rig.fields(generation_id)
    assert (record["state"], record["reason"], record["lease"]) == ("finished", EndReason.FAILED, "")
    assert await rig.pending() == {}
    [dead] = await rig.broker.dead.all()
    assert dead.generation_id == generation_id
    return dead.why


async def test_its_owner_sets_it_aside(rig: Rig) -> None:
    """Once, however often it says so; its readers are told of the end, and its log has it."""
    taken, text = await rig.start()
    await rig.step(text.row(taken.lease, 0, 3))
    for _ in range(2):
        assert await rig.broker.dead.set_aside(text.generation_id, lease=taken.lease, why="not tokens")
    assert await ended(rig, text.generation_id) == "not tokens"
    kinds = [type(row.entry).__name__ for row in await rig.inbox()]
    assert kinds == ["AttemptMark", "TokenRow", "Ending"]
    assert [type(each).__name__ for each in await rig.broker.read_log(text.generation_id)][-1] == "Ending"


async def test_nobody_else_does(rig: Rig) -> None:
    """Not one that lost its lease: the generation goes on."""
    taken, text = await rig.start()
    await rig.kill()
    assert not await rig.broker.dead.set_aside(text.generation_id, lease=taken.lease, why="mistaken")
    [entry] = await rig.adopt()
    again = await rig.take(entry, OTHER_WORKER)
    assert not await rig.broker.dead.set_aside(text.generation_id, lease=taken.lease, why="mistaken")
    await rig.step(text.last_row(again.lease, 0, 2))
    assert not await rig.broker.dead.set_aside(text.generation_id, lease=taken.lease, why="mistaken")
    assert await rig.broker.dead.count() == 0


async def test_a_log_that_takes_no_attempt_ends_its_generation(rig: Rig) -> None:
    """It is longer than the record says, or no log: the take sets it aside."""
    for number, damage in enumerate(("longer", "none")):
        await rig.client.delete(keys.DEAD)
        taken, text = await rig.start()
        await rig.step(text.row(taken.lease, 0, 3))
        await rig.broker.release(taken.entry, worker_id=WORKER, lease=taken.lease)
        if damage == "longer":
            await rig.rewrite(text.generation_id, T=2)
        else:
            await rig.client.set(keys.log(text.generation_id), "no stream", px=60_000)
        [entry] = await rig.adopt()
        assert await rig.broker.take(entry, worker_id=OTHER_WORKER, lease=new_lease()) is NotTaken.DAMAGED
        assert ("smaller" if damage == "longer" else "WRONGTYPE") in await ended(rig, text.generation_id)
        assert [type(e).__name__ for e in await rig.broker.read_log(text.generation_id)][-1] == "Ending", number


@pytest.mark.parametrize("field", ["T", "chain", "attempt", "accepted_ms", "job", "q", "readers", "caller"])
async def test_a_record_that_lacks_a_field_can_be_ended(rig: Rig, field: str) -> None:
    """By whoever takes it, or by whoever cancels it; no script breaks."""
    cancelled = (await rig.start())[1].generation_id
    await rig.kill()
    await rig.client.hdel(keys.record(cancelled), field)
    if field != "caller":
        assert (await rig.broker.cancel(cancelled, caller=CALLER))[0] is State.FINISHED
    else:
        await rig.rewrite(cancelled, caller=CALLER)
        await rig.broker.cancel(cancelled, caller=CALLER)

    submitted = await rig.submit()
    [entry] = [each for each in [*await rig.adopt(), *await rig.deliver()] if each.generation_id != cancelled]
    await rig.client.hdel(keys.record(submitted.generation_id), field)
    lease = new_lease()
    try:
        await rig.broker.take(entry, worker_id=WORKER, lease=lease)
    except MalformedMessage:
        assert await rig.broker.dead.set_aside(submitted.generation_id, lease=lease, why="a field is missing")
        assert (await rig.fields(submitted.generation_id))["state"] == "finished"
