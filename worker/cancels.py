"""Ends attempts whose generation was cancelled, at once: a nudge tells that a flag of ours has changed.

A nudge can be lost; the replies of `step` and the reconciliation carry the same flag.
"""

from collections.abc import Sequence

from contract import keys
from contract.broker import Broker
from worker.attempt import Attempt
from worker.holdings import Holdings, Parting
from worker.publish import Publisher
from worker.retry import until_answered


async def watch_cancels(broker: Broker, worker_id: str, holdings: Holdings, publisher: Publisher) -> None:
    """Look at our flags after every nudge, for ever."""
    async with broker.listen(keys.nudge(worker_id)) as nudges:
        async for _ in nudges:
            holdings.num_nudges += 1
            await until_answered(lambda: check_leases(broker, holdings, publisher))


async def check_leases(broker: Broker, holdings: Holdings, publisher: Publisher) -> None:
    """Compare every attempt with its record: drop those that are another's, cancel those that are flagged.

    Covers what does not publish: an attempt in its prefill learns only here. Raises BrokerDown.
    """
    attempts: Sequence[Attempt] = [each for each in holdings if each.end is None]  # an end learns it by its own row
    if not attempts:
        return
    standings = await broker.leases([each.generation_id for each in attempts])
    for attempt, (lease, is_cancelled) in zip(attempts, standings, strict=True):
        if attempt.end is not None:
            continue
        if lease != attempt.lease:
            holdings.part(attempt, Parting.LEASE_LOST)
        elif is_cancelled:
            publisher.cancel(attempt)
