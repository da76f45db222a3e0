"""Stops an engine process in order: finish what can be finished, hand back the rest, lose nothing."""

import asyncio
import contextlib

import structlog

from worker.engine_link import EngineLink
from worker.holdings import Holdings, Parting
from worker.publish import Publisher
from worker.take import Taker

log = structlog.get_logger(__name__)


async def drain(
    holdings: Holdings,
    engine: EngineLink,
    stepping: "asyncio.Task[None]",
    publisher: Publisher,
    taker: Taker,
    *,
    timeout_s: float,
) -> None:
    """Return when nothing is held any more. Nothing new may be claimed meanwhile; the publisher must be running.

    Args:
        stepping: the task of `engine.run`.
        timeout_s: how long attempts may go on; then the engine stops at a step border.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await holdings.is_empty.wait()
    engine.stop()
    await stepping
    await publisher.drained()  # every token that was generated is in its log
    for attempt in holdings:
        log.info("handed back", num_tokens=len(attempt.tokens), **attempt.facts)
        await taker.hand_back(attempt.taken.entry, attempt.lease)
        holdings.part(attempt, Parting.HANDED_BACK)
