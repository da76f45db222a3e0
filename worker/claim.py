"""Takes jobs for free slots: what others left behind first, then new ones, class by class.

Reads that block run beside the loop and are never cancelled: a cancelled XREADGROUP may already have been answered,
and its entries would lie pending until the reconciliation finds them.
"""

import asyncio
import contextlib

from contract import keys
from contract.broker import MAX_CRASHES, Broker, Delivered
from contract.errors import BrokerDown
from worker.holdings import Holdings
from worker.retry import Backoff
from worker.take import Taker

BLOCK_MS = 250
LOWEST_FIRST_EVERY = 8  # sweeps: no class starves


class Claimer:
    """Decides which entries this worker asks for, and when."""

    def __init__(self, broker: Broker, worker_id: str, model: str, holdings: Holdings, taker: Taker) -> None:
        self._broker = broker
        self._worker_id = worker_id
        self._model = model
        self._holdings = holdings
        self._taker = taker
        self._reads: dict[str, asyncio.Task[list[Delivered]]] = {}  # those that block, by class
        self._num_sweeps = 0
        self._reserved: Delivered | None = None  # adopted, to be taken when nothing else is held

    async def run(self, stop: asyncio.Event, group: asyncio.TaskGroup) -> None:
        """Claim until `stop`; then nothing is on its way to us any more.

        Args:
            group: owns the reads that block.
        """
        backoff = Backoff()
        while not stop.is_set():
            try:
                await self._claim_once(group)
                backoff.reset()
            except BrokerDown:
                await backoff.wait()
        for read in self._reads.values():
            for entry in await read:
                await self._taker.hand_back(entry)
        if self._reserved is not None:
            await self._taker.hand_back(self._reserved)

    async def watch_wakes(self) -> None:
        """Look for free work whenever someone announces it, for ever."""
        async with self._broker.listen(keys.WAKE) as wakes:
            async for _ in wakes:
                self._holdings.changed.set()

    async def _claim_once(self, group: asyncio.TaskGroup) -> None:
        """Take all there is for us, then wait for an arrival, a free slot, a wake or BLOCK_MS."""
        changed = self._holdings.changed
        changed.clear()  # before looking, so that nothing between looking and waiting is missed
        await self._take_arrivals()
        await self._take_reserved()
        await self._adopt()
        if await self._sweep():
            return
        if self._has_room():
            self._block_on_reads(group)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BLOCK_MS / 1000):
                await changed.wait()

    async def _take_arrivals(self) -> None:
        """Take what the reads beside the loop have brought."""
        for job_class, read in tuple(self._reads.items()):
            if read.done():
                del self._reads[job_class]
                for entry in read.result():
                    await self._take(entry)

    async def _adopt(self) -> None:
        """Take what others left behind. What may be poison is kept until it can run alone."""
        if not self._has_room() or self._is_on_probation():
            return
        adopted = await self._broker.adopt(self._worker_id, self._model, max_jobs=self._holdings.num_free, alone=True)
        standings = await self._broker.standings([entry.generation_id for entry in adopted])
        for entry, standing in zip(adopted, standings, strict=True):
            if standing is not None and standing.attempt >= MAX_CRASHES - 1:
                await self._reserve(entry)
            else:
                await self._take(entry)

    async def _reserve(self, entry: Delivered) -> None:
        """Keep the entry, and claim nothing else until it has run; one at a time.

        Its next crash convicts it, so no other job may be there to blame. Each crash was an attempt: one that was
        only handed back often waits here for nothing. A worker that simply refused it while busy would, under load,
        never be idle, and the job never end.
        """
        if self._reserved is None:
            self._reserved = entry
            self._holdings.taking.add(entry.entry_id)
        else:
            await self._taker.hand_back(entry)

    async def _take_reserved(self) -> None:
        if self._reserved is not None and len(self._holdings) == 0:
            entry, self._reserved = self._reserved, None
            await self._taker.take(entry)

    async def _sweep(self) -> bool:
        """Read the first class that has waiting jobs, without blocking; whether there was one."""
        self._num_sweeps += 1
        lowest_first = self._num_sweeps % LOWEST_FIRST_EVERY == 0
        for job_class in reversed(keys.CLASSES) if lowest_first else keys.CLASSES:
            if not self._has_room():
                return False
            if entries := await self._read(job_class, count=self._holdings.num_free, block_ms=0):
                for entry in entries:
                    await self._take(entry)
                return True
        return False

    def _block_on_reads(self, group: asyncio.TaskGroup) -> None:
        """One blocking read per class: nobody waits, and the first to come is served at once."""
        for job_class in keys.CLASSES:
            if job_class not in self._reads:
                read = group.create_task(self._read_beside(job_class), name=f"read-{job_class}")
                read.add_done_callback(lambda _: self._holdings.changed.set())
                self._reads[job_class] = read

    async def _read_beside(self, job_class: str) -> list[Delivered]:
        try:
            return await self._read(job_class, count=1, block_ms=BLOCK_MS)
        except BrokerDown:
            return []  # the loop meets it too, and waits

    async def _read(self, job_class: str, *, count: int, block_ms: int) -> list[Delivered]:
        return await self._broker.read_jobs(self._worker_id, self._model, job_class, count=count, block_ms=block_ms)

    def _has_room(self) -> bool:
        """Whether a slot is free, and nothing runs alone or waits to do so."""
        runs_alone = any(each.taken.attempt >= MAX_CRASHES for each in self._holdings)
        return self._holdings.num_free > 0 and self._reserved is None and not runs_alone

    def _is_on_probation(self) -> bool:
        """Whether an attempt that another worker did not finish has yet to prove itself by its first new token.

        If such a job kills its worker, it should not take others along that were adopted with it.
        """
        return any(each.taken.attempt > 1 and each.num_logged == each.num_at_start for each in self._holdings)

    async def _take(self, entry: Delivered) -> None:
        if self._has_room():
            await self._taker.take(entry)
        else:  # several blocking reads came back at once
            await self._taker.hand_back(entry)
