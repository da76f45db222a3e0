"""Classes of priority at a real Redis, in the order in which a worker really reads: higher first, and none starves."""

from contract import keys
from contract.broker import Broker
from tests.worker.rig import finished, local_worker, make_job, submit

NUM_JOBS = 48  # of each class, all waiting before the worker comes


async def test_no_class_starves_while_all_others_are_flooded(broker: Broker) -> None:
    """One slot, every class full: high goes first, and of both others some are taken long before high has ended."""
    classes: dict[str, str] = {}
    for number in range(NUM_JOBS):
        for job_class in reversed(keys.CLASSES):
            job = make_job([number + 1], 1, job_class=job_class)
            classes[await submit(broker, job)] = job_class
    async with local_worker(broker, max_sequences=1):
        for generation_id in classes:
            await finished(broker, generation_id)

    taken_ms = {each: int(await broker._client.hget(keys.record(each), "taken_ms")) for each in classes}
    order = [classes[each] for each in sorted(taken_ms, key=taken_ms.__getitem__)]
    begun = order[:NUM_JOBS]
    assert begun.count("high") > begun.count("normal") + begun.count("low")
    assert begun.count("normal") >= 2
    assert begun.count("low") >= 2
    rest = [job_class for job_class in order if job_class != "high"]
    assert rest[: NUM_JOBS // 2].count("normal") > rest[: NUM_JOBS // 2].count("low")
