"""Who is dead: watches the heartbeats of the other workers of a model, and frees what a dead one held.

A heartbeat is a counter. It is judged by this process' own clock only, so an outage of Redis, or a pause of this
process, kills nobody: both start the watch over. The process of a worker on this machine is watched itself.
"""

import random
import time
from collections.abc import Callable

import structlog

from contract.broker import Broker, WorkerBeat
from contract.errors import BrokerDown
from worker.deaths import Deaths
from worker.pid_space import is_gone
from worker.stillness import Stillness
from worker.supervisor_metrics import count_reap

log = structlog.get_logger(__name__)

POLL_S = 0.25
SHORTEST_POLL_S = 0.02
MIN_POLLS = 3


class Detector:
    """Finds workers that are dead and reaps them; any number of detectors may find the same one."""

    def __init__(self, broker: Broker, model: str, *, dead_after_ms: int, own_id: Callable[[], str]) -> None:
        """Args: own_id: the worker that this process watches by other means."""
        self._broker = broker
        self._model = model
        self._dead_after_s = dead_after_ms / 1000
        self._own_id = own_id
        self._watched: dict[str, Stillness] = {}

    async def run(self) -> None:
        """Look every POLL_S, and when a process dies, for ever."""
        deaths = Deaths()
        try:
            while True:
                try:
                    deaths.watch(_supervisor(each) for each in await self.poll())
                except BrokerDown:
                    self._watched.clear()
                longest_s = max(SHORTEST_POLL_S, self._soonest_death_s())
                await deaths.wait(min(POLL_S * random.uniform(1.0, 1.2), longest_s))
        finally:
            deaths.close()

    async def poll(self) -> list[WorkerBeat]:
        """Look once, and reap who is dead; return the beats of those that it did not. Raises BrokerDown."""
        living = []
        consumers = set(await self._broker.consumers(self._model)) - {self._own_id()}
        pool = {each.worker_id: each for each in await self._broker.pool()}
        now_s = time.monotonic()
        self._watched = {worker_id: self._watched.get(worker_id, Stillness()) for worker_id in consumers}
        for worker_id, stillness in self._watched.items():
            worker = pool.get(worker_id)
            beat = worker.beat if worker is not None else ""
            is_still = stillness.look(beat, now_s) >= self._dead_after_s and stillness.num_looks >= MIN_POLLS
            if is_still or (worker is not None and is_gone(*_supervisor(worker))):  # the engine dies with it
                await self._reap(worker_id, beat)
            elif worker is not None:
                living.append(worker)
        return living

    def _soonest_death_s(self) -> float:
        """Until the worker that has stood still for longest is dead, if it goes on so."""
        now_s = time.monotonic()
        return min((each.since_s + self._dead_after_s - now_s for each in self._watched.values()), default=POLL_S)

    async def _reap(self, worker_id: str, beat: str) -> None:
        num_freed = await self._broker.reap(worker_id, beat, self._model)
        if num_freed is not None:
            log.warning("dead worker reaped", worker_id=worker_id, num_freed=num_freed)
            count_reap(self._model)


def _supervisor(worker: WorkerBeat) -> tuple[str, str]:
    """Pid space and process id."""
    return worker.fields.get("pid_space", ""), worker.fields.get("supervisor_pid", "")


async def reap_own(broker: Broker, worker_id: str, model: str) -> None:
    """Free what an ended engine process of ours held: it is known to be dead. Raises BrokerDown."""
    num_freed = None
    while num_freed is None:  # a last beat of ours may have been on its way
        beats = {each.worker_id: each.beat for each in await broker.pool()}
        num_freed = await broker.reap(worker_id, beats.get(worker_id, ""), model)
    count_reap(model)
