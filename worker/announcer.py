"""Keeps what this worker serves announced: without it gateways would know the model no more.

An announcement lasts for days, but Redis may come back without it: empty, or short of its last moments. A restart may
be over before this process has asked anything, so it does not wait for an outage of its own; it looks.
"""

import asyncio
import time

import structlog

from contract.broker import Broker
from contract.bundle import ModelBundle, digest_of
from worker.retry import until_answered

log = structlog.get_logger(__name__)

LOOK_S = 1.0
RENEW_S = 3600.0


class Announcer:
    """One model's announcement."""

    def __init__(self, broker: Broker, model: str, bundle: ModelBundle) -> None:
        self._broker = broker
        self._model = model
        self._payload = bundle.to_bytes()
        self._digest = digest_of(self._payload)
        self._announced_s = 0.0

    async def announce(self) -> None:
        """Publish the model, and make its jobs streams."""
        await until_answered(lambda: self._broker.announce(self._model, self._digest, self._payload))
        self._announced_s = time.monotonic()

    async def run(self) -> None:
        """Announce again what is lost, within LOOK_S, and every RENEW_S what is there; for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            is_there = await until_answered(lambda: self._broker.is_announced(self._model, self._digest))
            if not is_there:
                log.warning("the announcement was lost; announcing again", model=self._model)
            if not is_there or time.monotonic() - self._announced_s >= RENEW_S:
                await self.announce()
