"""The blows of a chaos run. Each ends when the herd has got over it; what that took goes into the report."""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import redis.asyncio
from redis.exceptions import RedisError

from tests.faults.chaos.herd import Herd, LiveWorker, Process
from tests.faults.chaos.reader import Reader
from tests.faults.chaos.watch import Place, places, recoveries
from tests.until import until

SETTLE_S = 90.0
ASK_S = 0.05
PAUSE_S = 3.0  # of Redis, and of a gateway: longer than any deadline for a sign of life


@dataclass(slots=True)
class Felt:
    """What was done, and how long the herd took to get over it, in seconds."""

    counts: Counter[str] = field(default_factory=Counter)
    recovery_s: list[float] = field(default_factory=list)  # a worker's SIGKILL to the next logged token, a spare lives
    burst_s: list[float] = field(default_factory=list)  # the same, when several processes were killed at once
    outage_s: list[float] = field(default_factory=list)  # from Redis' first answer to the next logged token of any
    hung: list[str] = field(default_factory=list)

    @property
    def num_kills(self) -> int:
        """SIGKILLs of workers and gateways."""
        return self.counts["worker kills"] + self.counts["gateway kills"]


class Striker:
    """Strikes a herd, one blow after another."""

    def __init__(self, herd: Herd, readers: set[Reader], client: "redis.asyncio.Redis", rnd: random.Random) -> None:
        self.felt = Felt()
        self.stop = asyncio.Event()
        self._herd = herd
        self._readers = readers
        self._client = client
        self._rnd = rnd
        self._blows: dict[Callable[[], Awaitable[None]], int] = {  # and how often
            self._kill_child: 18,
            self._kill_worker: 18,
            self._kill_gateway: 78,
            self._kill_two_workers: 2,
            self._kill_worker_and_adopter: 2,
            self._kill_gateway_and_worker: 3,
            self._freeze_worker: 2,
            self._freeze_gateway: 1,
            self._drain_worker: 1,
            self._drain_gateway: 1,
            self._restart_redis: 1,
            self._pause_redis: 1,
        }
        self._wants_no_worker = (self._kill_gateway, self._freeze_gateway, self._drain_gateway)

    async def strike_until(self, num_kills: int, deadline_s: float, note: Callable[[str], None]) -> None:
        """One blow after another, until so many kills, the deadline or `stop`; `note` is told what each was."""
        while self.felt.num_kills < num_kills and time.monotonic() < deadline_s and not self.stop.is_set():
            [blow] = self._rnd.choices(list(self._blows), weights=list(self._blows.values()))
            await self._strike(blow, note)

    async def strike_each(self, note: Callable[[str], None]) -> None:
        """Every blow once, in a random order."""
        for blow in self._rnd.sample(list(self._blows), len(self._blows)):
            await self._strike(blow, note)

    async def _strike(self, blow: Callable[[], Awaitable[None]], note: Callable[[str], None]) -> None:
        begun_s = time.monotonic()
        try:
            is_ready = self._has_spare if blow in self._wants_no_worker else self._is_whole
            await until(is_ready, SETTLE_S, "the herd is whole again")
            ready_s = time.monotonic()
            await blow()
        except TimeoutError as error:
            self.felt.hung.append(f"{blow.__name__}: {error}")
            note(f"{blow.__name__}: {error}")
        except (LookupError, ProcessLookupError, ValueError) as error:  # whom it was to strike has just ended by itself
            note(f"{blow.__name__} found nobody: {error!r}")
        else:
            note(f"{blow.__name__} after {ready_s - begun_s:.1f} s, over in {time.monotonic() - ready_s:.1f} s")

    async def _is_whole(self) -> bool:
        """Whether everything runs: before a worker is struck, so that no other's start takes the cores it needs."""
        await asyncio.sleep(ASK_S)
        return await self._herd.is_whole()

    async def _has_spare(self) -> bool:
        """Whether one worker may die and those left have slots for all; both gateways must take calls."""
        await asyncio.sleep(ASK_S)
        workers = await self._herd.live_workers()
        num_slots = sum(each.num_slots for each in workers) - max((each.num_slots for each in workers), default=0)
        return num_slots >= len(self._readers) and await self._herd.gateways_serve()

    async def _victim(self) -> LiveWorker:
        """One that has something to lose, if there is any."""
        workers = await self._herd.live_workers()
        return self._rnd.choice([each for each in workers if each.num_running] or workers)

    async def _held(self, *worker_ids: str) -> dict[str, Place]:
        """What these workers are running."""
        everything = await places(self._client, [r.generation_id for r in self._readers if r.generation_id])
        return {
            id_: place for id_, place in everything.items() if place.state == "running" and place.owner in worker_ids
        }

    async def _kill_child(self) -> None:
        worker = await self._victim()
        await self._kill([worker], self.felt.recovery_s, children_only=True)

    async def _kill_worker(self) -> None:
        await self._kill([await self._victim()], self.felt.recovery_s)

    async def _kill_two_workers(self) -> None:
        workers = self._rnd.sample(await self._herd.live_workers(), 2)
        await self._kill(workers, self.felt.burst_s)

    async def _kill(self, workers: list[LiveWorker], samples: list[float], *, children_only: bool = False) -> None:
        held = await self._held(*(each.worker_id for each in workers))
        killed_s = time.time()
        for worker in workers:
            self._kill_one(worker, child_only=children_only)
        await self._recovered(held, killed_s, samples)

    async def _kill_worker_and_adopter(self) -> None:
        """The second dies when it has just taken what the first one held."""
        first = await self._victim()
        held = await self._held(first.worker_id)
        self._kill_one(first, child_only=True)
        adopter = ""

        async def is_adopted() -> bool:
            nonlocal adopter
            now = await places(self._client, held)
            adopter = next((p.owner for id_, p in now.items() if p.owner and p.attempt > held[id_].attempt), "")
            return bool(adopter) or all(place.state == "finished" for place in now.values())

        await until(is_adopted, SETTLE_S, "what a dead worker held is taken")
        for second in await self._herd.live_workers():
            if second.worker_id == adopter:
                held = await self._held(adopter)
                killed_s = time.time()
                self._kill_one(second)
                await self._recovered(held, killed_s, self.felt.burst_s)

    def _kill_one(self, worker: LiveWorker, *, child_only: bool = False) -> None:
        """Its engine, or what serves it, which its supervisor notices; or all, which only others can."""
        self.felt.counts["worker kills"] += 1
        if child_only:
            os.kill(self._rnd.choice((worker.engine_pid, worker.serving_pid)), signal.SIGKILL)
        else:
            worker.process.child.kill()

    async def _recovered(self, held: dict[str, Place], killed_s: float, samples: list[float]) -> None:
        found, late = await recoveries(self._client, held, killed_s)
        samples += found
        self.felt.hung += [f"{generation_id} did not go on after a kill" for generation_id in late]

    async def _kill_gateway(self) -> None:
        await self._resumed(self._kill_gateway_now(self._rnd.choice(self._herd.gateways)))

    async def _kill_gateway_and_worker(self) -> None:
        struck = self._kill_gateway_now(self._rnd.choice(self._herd.gateways))
        await self._kill([await self._victim()], self.felt.burst_s)
        await self._resumed(struck)

    def _kill_gateway_now(self, gateway: Process) -> list[Reader]:
        """Kill it; who was reading there."""
        struck = [each for each in self._readers if each.gateway == self._herd.gateways.index(gateway)]
        for reader in struck:
            reader.struck_s = time.monotonic()
        self.felt.counts["gateway kills"] += 1
        gateway.child.kill()
        return struck

    async def _resumed(self, struck: list[Reader]) -> None:
        def all_have_news() -> bool:
            return not any(reader.struck_s is not None and reader in self._readers for reader in struck)

        await until(all_have_news, SETTLE_S, "the clients of a dead gateway read on")

    async def _freeze_worker(self) -> None:
        """Frozen until another has taken all that it held; then woken."""
        self.felt.counts["worker freezes"] += 1
        worker = await self._victim()
        held = await self._held(worker.worker_id)
        children = [worker.serving_pid, worker.engine_pid]
        pids = self._rnd.choice((*([each] for each in children), [worker.process.child.pid, *children]))
        worker.process.is_frozen = True
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)

        async def all_moved() -> bool:
            now = await places(self._client, held)
            return all(p.attempt > held[id_].attempt or p.state == "finished" for id_, p in now.items())

        await until(all_moved, SETTLE_S, "what a frozen worker held is taken")
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)
        worker.process.is_frozen = False

    async def _freeze_gateway(self) -> None:
        self.felt.counts["gateway freezes"] += 1
        gateway = self._rnd.choice(self._herd.gateways)
        gateway.child.send_signal(signal.SIGSTOP)
        await asyncio.sleep(PAUSE_S)
        gateway.child.send_signal(signal.SIGCONT)

    async def _drain_worker(self) -> None:
        self.felt.counts["worker drains"] += 1
        await self._drain((await self._victim()).process)

    async def _drain_gateway(self) -> None:
        self.felt.counts["gateway drains"] += 1
        await self._drain(self._rnd.choice(self._herd.gateways))

    async def _drain(self, process: Process) -> None:
        num_starts = process.num_starts
        process.child.send_signal(signal.SIGTERM)
        await until(lambda: process.num_starts > num_starts, SETTLE_S, f"{process.name} has drained")

    async def _restart_redis(self) -> None:
        self.felt.counts["redis restarts"] += 1
        await asyncio.to_thread(self._herd.server.settle)  # a lost tail may be DATA_LOSS; it has tests of its own
        self._herd.server.kill()
        self._herd.server.start()
        await self._back(time.monotonic())

    async def _pause_redis(self) -> None:
        self.felt.counts["redis pauses"] += 1
        self._herd.server.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(PAUSE_S)
        self._herd.server.process.send_signal(signal.SIGCONT)
        await self._back(time.monotonic())

    async def _back(self, answers_s: float) -> None:
        """Wait for the next token of any generation, old or new."""
        before: dict[str, int] | None = None

        async def has_news() -> bool:
            nonlocal before
            try:
                found = await places(self._client, [r.generation_id for r in self._readers if r.generation_id])
            except RedisError:
                return False
            now = {id_: place.num_tokens for id_, place in found.items()}
            if before is None:
                before = now
            return any(num_tokens > before.get(id_, 0) for id_, num_tokens in now.items())

        await until(has_news, SETTLE_S, "tokens come after an outage")
        self.felt.outage_s.append(time.monotonic() - answers_s)
