"""Tells a person when Redis is set up so that it breaks a promise: once a process, and once for each change."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress

import structlog

from contract.errors import BrokerDown
from contract.server_check import Weakness, WeaknessKind
from telemetry import names
from telemetry.metrics import Reading, observe

log = structlog.get_logger(__name__)

LOOK_S = 2.0


class RedisWatch:
    """What is known of the server's weaknesses; none before the first look."""

    def __init__(self, find: Callable[[], Awaitable[Sequence[Weakness]]]) -> None:
        """Args: find: one look; may raise BrokerDown, which others tell of."""
        self._find = find
        self._known: dict[WeaknessKind, Weakness] = {}

    async def run(self) -> None:
        """Look every LOOK_S, for ever: a server may be another one after a restart, or be set up anew while it runs."""
        observe(names.REDIS_WEAKNESSES, self._read)
        while True:
            with suppress(BrokerDown):
                self._note({each.kind: each for each in await self._find()})
            await asyncio.sleep(LOOK_S)

    def _note(self, found: dict[WeaknessKind, Weakness]) -> None:
        for kind, weakness in found.items():
            if self._known.get(kind) != weakness:
                log.warning("redis breaks a promise", weakness=kind, why=weakness.text)
        for kind in self._known.keys() - found.keys():
            log.info("redis keeps that promise again", weakness=kind)
        self._known = found

    def _read(self) -> Iterable[Reading]:
        known = self._known
        return [(int(kind in known), {names.ATTR_REDIS_WEAKNESS: kind.value}) for kind in WeaknessKind]
