"""Takes jobs for free slots: what others left behind first, then new ones, class by class.

Reads that block run beside the loop and are never cancelled: a cancelled XREADGROUP may already have been answered,
and its entries would lie pending until the reconciliation finds them. While the loop waits, they take what they bring.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence

from contract import keys
from contract.broker import Broker, Delivered
from contract.errors import BrokerDown
from worker.engine_link import EngineLink
from worker.holdings import Holdings
from worker.retry import Backoff
from worker.take import Taker

BLOCK_MS = 250
ADOPTED_TOGETHER = 4  # so that all workers that a wake reaches share what a dead one held, and its prefill
TAKEN_TOGETHER = 8
LOWER_FIRST_EVERY = 8  # sweeps that took something: no class starves


class Claimer:
    """Decides which entries this worker asks for, and when."""

    def __init__(
        self,
        broker: Broker,
        worker_id: str,
        model: str,
        holdings: Holdings,
        engine: EngineLink,
        taker: Taker,
    ) -> None:
        self._broker = broker
        self._worker_id = worker_id
        self._model = model
        self._holdings = holdings
        self._engine = engine
        self._taker = taker
        self._reads: dict[str, asyncio.Task[list[Delivered]]] = {}  # those that block, by class
        self._num_taking = 0  # sweeps that took something
        self._choosing = asyncio.Lock()  # held by the loop or by one read, from looking for room to having used it

    async def run(self, stop: asyncio.Event, group: asyncio.TaskGroup) -> None:
        """Claim until `stop`; then nothing is on its way to us any more.

        Args:
            group: owns the reads that block.
        """
        backoff = Backoff()
        while not stop.is_set():
            try:
                await self._claim_once(stop, group)
                backoff.reset()
            except BrokerDown:
                await backoff.wait()
        for read in self._reads.values():
            for entry in await read:
                await self._hand_back(entry)

    async def watch_wakes(self) -> None:
        """Look for free work whenever someone announces it, for ever."""
        async with self._broker.listen(keys.WAKE) as wakes:
            async for _ in wakes:
                self._holdings.changed.set()

    async def _claim_once(self, stop: asyncio.Event, group: asyncio.TaskGroup) -> None:
        """Take all there is for us, then wait for an arrival, a free slot, a wake or BLOCK_MS."""
        changed = self._holdings.changed
        async with self._choosing:
            changed.clear()  # before looking, so that nothing between looking and waiting is missed
            await self._take_arrivals()
            await self._adopt()
            if await self._sweep():
                return
            if self._has_room():
                self._block_on_reads(stop, group)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BLOCK_MS / 1000):
                await changed.wait()

    async def _take_arrivals(self) -> None:
        """Take what the reads beside the loop have brought."""
        for job_class, read in tuple(self._reads.items()):
            if read.done():
                del self._reads[job_class]
                await self._take_together(read.result())

    async def _adopt(self) -> None:
        """Take what others left behind, a few at a time; what may be poison last."""
        while self._has_room():
            max_jobs = min(self._holdings.num_free, ADOPTED_TOGETHER)
            adopted = await self._broker.adopt(self._worker_id, self._model, max_jobs=max_jobs, may_run_alone=True)
            self._holdings.taking.update(entry.entry_id for entry in adopted)
            await self._take_together([entry for entry in adopted if not entry.runs_alone])
            for entry in adopted:
                if entry.runs_alone:
                    await (self._take_alone(entry) if self._has_room() else self._hand_back(entry))
            if len(adopted) < max_jobs:
                return

    async def _take_alone(self, entry: Delivered) -> None:
        """Take what may be poison while everything else stands still: its next crash convicts it, and it alone.

        That lasts for its prefill and a few tokens. A worker that waited until it is idle would, under load, wait
        for ever, and the job with it.
        """
        self._holdings.begin_alone(entry.generation_id)
        await self._engine.settled()
        await self._taker.take(entry)
        if self._holdings.of_generation(entry.generation_id) is None:
            self._holdings.end_alone(entry.generation_id)

    async def _sweep(self) -> bool:
        """Read the first class that has waiting jobs, without blocking; whether there was one.

        Only a sweep that takes something counts: were those that find no room counted too, every turn of the lower
        classes could fall on one of them.
        """
        for job_class in class_order(self._num_taking + 1):
            if not self._has_room():
                return False
            if entries := await self._read(job_class, count=self._holdings.num_free, block_ms=0):
                self._num_taking += 1
                await self._take_together(entries)
                return True
        return False

    def _block_on_reads(self, stop: asyncio.Event, group: asyncio.TaskGroup) -> None:
        """One blocking read per class: nobody waits, and the first to come is served at once."""
        for job_class in keys.CLASSES:
            if job_class not in self._reads:
                read = group.create_task(self._read_beside(job_class, stop), name=f"read-{job_class}")
                read.add_done_callback(lambda _: self._holdings.changed.set())
                self._reads[job_class] = read

    async def _read_beside(self, job_class: str, stop: asyncio.Event) -> list[Delivered]:
        """What came and is still to be taken: nothing where the loop waits, since the way to it would take longer."""
        try:
            entries = await self._read(job_class, count=1, block_ms=BLOCK_MS)
        except BrokerDown:
            return []  # the loop meets it too, and waits
        if not entries or self._choosing.locked():
            return entries
        async with self._choosing:
            if stop.is_set() or not self._has_room():
                return entries
            await self._taker.take(entries[0])
            return []

    async def _read(self, job_class: str, *, count: int, block_ms: int) -> list[Delivered]:
        """New entries. All are known from here on: the reconciliation hands back what is pending and unknown."""
        entries = await self._broker.read_jobs(self._worker_id, self._model, job_class, count=count, block_ms=block_ms)
        self._holdings.taking.update(entry.entry_id for entry in entries)
        return entries

    def _has_room(self) -> bool:
        """Whether a slot is free, and nothing runs alone."""
        return self._holdings.num_free > 0 and not self._holdings.runs_alone

    async def _take_together(self, entries: Sequence[Delivered]) -> None:
        """Take several at a time: a take waits for Redis, which has steps to serve too."""
        left = deque(entries)
        while left and self._has_room():
            async with asyncio.TaskGroup() as group:
                for _ in range(min(len(left), self._holdings.num_free, TAKEN_TOGETHER)):
                    group.create_task(self._taker.take(left.popleft()))
        for entry in left:  # several blocking reads came back at once
            await self._hand_back(entry)

    async def _hand_back(self, entry: Delivered) -> None:
        await self._taker.hand_back(entry)
        self._holdings.taking.discard(entry.entry_id)


def class_order(sweep: int) -> tuple[str, ...]:
    """In which order a sweep looks at the classes: every eighth begins with a lower one, each of those in turn.

    Were it always the lowest, a flood of the lowest and the highest would starve those between.
    """
    turn, ordinary = divmod(sweep, LOWER_FIRST_EVERY)
    first = 0 if ordinary else 1 + turn % (len(keys.CLASSES) - 1)
    return keys.CLASSES[first:] + keys.CLASSES[:first]
