"""How far the jobs streams are worked off, as metrics and `herd status` tell it."""

from contract import keys
from contract.broker import QueueDepth
from tests.contract.rig import CLASS, MODEL, Rig


async def test_a_job_is_new_then_held_then_gone(rig: Rig) -> None:
    """Each is counted in one place; what was delivered counts for ever."""
    at = (MODEL, CLASS)

    async def depth() -> QueueDepth:
        return (await rig.broker.queue_depths([MODEL]))[at]

    assert await depth() == QueueDepth(0, 0, 0, 0)
    taken, text = await rig.start()
    await rig.submit()
    assert await depth() == QueueDepth(num_new=1, num_free=0, num_held=1, num_delivered=1)

    await rig.broker.release(taken.entry, worker_id="worker-a", lease=taken.lease)
    assert await depth() == QueueDepth(num_new=1, num_free=1, num_held=0, num_delivered=1)
    assert (await depth()).num_waiting == 2

    [entry] = await rig.adopt()
    again = await rig.take(entry, "worker-b")
    text.grow(1)
    await rig.step(text.last_row(again.lease, 0, 1))
    assert await depth() == QueueDepth(num_new=1, num_free=0, num_held=0, num_delivered=1)


async def test_every_class_of_every_model_is_told(rig: Rig) -> None:
    """Also of a model whose streams nobody has made."""
    assert await rig.broker.queue_depths([]) == {}
    depths = await rig.broker.queue_depths([MODEL, "unknown"])
    assert set(depths) == {(model, job_class) for model in (MODEL, "unknown") for job_class in keys.CLASSES}
    assert set(depths.values()) == {QueueDepth(0, 0, 0, 0)}
    assert await rig.broker.dead.count() == 0
