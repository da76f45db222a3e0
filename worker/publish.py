"""Writes what the engine makes into the token logs: one fenced call per engine step, never two in flight.

What the engine makes while a call is under way joins the next one, one row per generation. A row that the log does
not take is answered by why: the log is behind (send again from there), the lease is lost (drop it), or the
generation has ended.
"""

import asyncio
import time
from collections.abc import Sequence

import structlog

from contract.broker import PROVEN_TOKENS, Broker, RowOutcome, RowReply
from contract.errors import BrokerDown
from worker.attempt import Attempt, Hold
from worker.engine.sequence import (
    FinishEvent,
    FinishReason,
    PrefilledEvent,
    PromptLogprobsEvent,
    StartedEvent,
    StepEvent,
    TokenEvent,
)
from worker.engine_link import EngineLink
from worker.holdings import Holdings, Parting
from worker.retry import Backoff

GATHERING_A_ROW_S = 70e-6  # a row costs Redis, worker and gateway some 50 us, whatever it holds
LEAST_GATHERING_S, MAX_GATHERING_S = 0.001, 0.025

log = structlog.get_logger(__name__)


class Publisher:
    """The only writer of this worker's rows.

    Invariant: an attempt that is held and has news is in `_dirty` or in the call under way.
    """

    def __init__(self, broker: Broker, holdings: Holdings, engine: EngineLink, *, max_unpublished_tokens: int) -> None:
        """Args: max_unpublished_tokens: of one attempt; then the engine holds it until the log has caught up."""
        self._broker = broker
        self._holdings = holdings
        self._engine = engine
        self._max_unpublished_tokens = max_unpublished_tokens
        self._dirty: dict[str, Attempt] = {}  # by lease, in the order of their first news
        self._wake = asyncio.Event()
        self._is_calling = False
        self._settled = asyncio.Event()

    def accept(self, events: Sequence[StepEvent]) -> None:
        """Take the events of one engine step. Those of attempts that are no longer held are ignored."""
        for event in events:
            if (attempt := self._holdings.by_lease(event.generation_id)) is not None:
                self._note(attempt, event)

    async def run(self) -> None:
        """Publish for ever. While the broker is down everything is kept and sent when it is back."""
        backoff = Backoff()
        while True:
            await self._wake.wait()
            self._wake.clear()
            next_s = time.monotonic() + gathering_s(len(self._dirty))
            try:
                await self._publish()
            except BrokerDown:
                await backoff.wait()
                self._wake.set()
            else:
                backoff.reset()
                await asyncio.sleep(max(0.0, next_s - time.monotonic()))

    async def drained(self) -> None:
        """Return when every attempt's news is in its log. `run` must be running, and the engine at rest."""
        while self._dirty or self._is_calling:
            self._settled.clear()
            await self._settled.wait()

    def _note(self, attempt: Attempt, event: StepEvent) -> None:
        match event:
            case TokenEvent():
                attempt.push(event)
                self._mark(attempt)
            case FinishEvent():
                if event.reason is FinishReason.FAILED:
                    log.error("generation failed", error=event.error, **attempt.facts)
                attempt.close(event)
                self._mark(attempt)
            case StartedEvent():
                attempt.started_s = event.time_s
            case PrefilledEvent():
                attempt.prefilled_s = event.time_s
                attempt.begin_output()  # the first token comes with the same step, and marks it
            case PromptLogprobsEvent():
                attempt.prompt_logprobs = event.tokens

    def _mark(self, attempt: Attempt) -> None:
        self._dirty[attempt.lease] = attempt
        self._wake.set()
        if attempt.num_unpublished >= self._max_unpublished_tokens and Hold.BACKLOG not in attempt.holds:
            self._holdings.hold(attempt, Hold.BACKLOG, True)

    async def _publish(self) -> None:
        """One call with everything new. After BrokerDown everything is new again: the log tells what it has."""
        attempts = [each for each in self._dirty.values() if self._holdings.by_lease(each.lease) is not None]
        self._dirty.clear()
        self._is_calling = True
        try:
            replies = await self._broker.step([each.next_row() for each in attempts]) if attempts else []
        except BrokerDown:
            self._dirty = {each.lease: each for each in attempts} | self._dirty
            raise
        finally:
            self._is_calling = False
        for attempt, reply in zip(attempts, replies, strict=True):
            self._settle(attempt, reply)
        self._settled.set()

    def _settle(self, attempt: Attempt, reply: RowReply) -> None:
        match reply.outcome:
            case RowOutcome.DONE:
                self._holdings.part(attempt, Parting.ENDED)
            case RowOutcome.FENCED:
                log.info("lease lost", **attempt.facts)
                self._holdings.part(attempt, Parting.LEASE_LOST)
            case RowOutcome.BACK:
                log.warning("log is behind", sent=attempt.num_logged, has=reply.num_tokens, **attempt.facts)
                attempt.num_logged = reply.num_tokens
                self._mark(attempt)
            case RowOutcome.OK:
                attempt.num_logged = reply.num_tokens
                if self._holdings.runs_alone and attempt.num_logged >= attempt.num_at_start + PROVEN_TOKENS:
                    self._holdings.end_alone(attempt.generation_id)
                self._go_on(attempt, is_cancelled=reply.cancel)

    def _go_on(self, attempt: Attempt, *, is_cancelled: bool) -> None:
        if is_cancelled:
            self.cancel(attempt)
        if attempt.has_news:  # it came meanwhile, or was more than a row takes
            self._mark(attempt)
        if Hold.BACKLOG in attempt.holds and attempt.num_unpublished <= self._max_unpublished_tokens // 2:
            self._holdings.hold(attempt, Hold.BACKLOG, False)

    def cancel(self, attempt: Attempt) -> None:
        """Let the engine end the attempt with CANCELLED; it is published as any other end."""
        if not attempt.is_cancelled:
            attempt.is_cancelled = True
            self._engine.cancel(attempt.lease)


def gathering_s(num_rows: int) -> float:
    """How long after a call of so many rows the next one may begin; what the engine makes meanwhile gathers.

    A model that steps 64 sequences every 4 ms or slower is followed step by step; a faster one would keep this process,
    Redis and the gateways busy with rows of one token. A few sequences never wait.
    """
    wait_s = min(num_rows * GATHERING_A_ROW_S, MAX_GATHERING_S)
    return wait_s if wait_s >= LEAST_GATHERING_S else 0.0
