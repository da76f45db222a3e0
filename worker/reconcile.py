"""Compares what Redis says this worker holds with what it does hold, every second and after each outage.

A lost XREADGROUP reply leaves an entry pending to a worker that never saw it; without this it would hang for ever.
"""

import asyncio

import structlog

from contract.broker import Broker, Delivered
from contract.errors import BrokerDown
from worker.cancels import check_leases
from worker.holdings import Holdings
from worker.publish import Publisher
from worker.retry import Backoff

log = structlog.get_logger(__name__)

PERIOD_S = 1.0
PATIENCE_ROUNDS = 2  # an entry may be on its way to us during one round


class Reconciler:
    """Finds entries that are pending to this worker without its knowledge, and leases that it no longer has."""

    def __init__(self, broker: Broker, worker_id: str, model: str, holdings: Holdings, publisher: Publisher) -> None:
        self._broker = broker
        self._worker_id = worker_id
        self._model = model
        self._holdings = holdings
        self._publisher = publisher
        self._rounds_unknown: dict[Delivered, int] = {}

    async def run(self) -> None:
        """One round every PERIOD_S, for ever; after an outage as soon as it is over."""
        backoff = Backoff()
        while True:
            try:
                await self.round()
            except BrokerDown:
                await backoff.wait()
            else:
                backoff.reset()
                await asyncio.sleep(PERIOD_S)

    async def round(self) -> None:
        """One comparison. Raises BrokerDown."""
        pending = await self._broker.own_pending(self._worker_id, self._model)
        unknown = [entry for entry in pending if not self._holdings.knows(entry)]
        self._rounds_unknown = {entry: self._rounds_unknown.get(entry, 0) + 1 for entry in unknown}
        for entry, rounds in self._rounds_unknown.items():
            if rounds >= PATIENCE_ROUNDS and not self._holdings.knows(entry):
                log.warning("handing back an entry that never arrived", generation_id=entry.generation_id)
                await self._broker.release(entry, worker_id=self._worker_id, lease=None)
        await check_leases(self._broker, self._holdings, self._publisher)
