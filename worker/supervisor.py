"""Keeps an engine process and the one that serves it running: beats while they work, frees what they held at a death.

Lives in a process of its own that loads no torch.
"""

import asyncio
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Sequence

import structlog

from contract import exit_status
from contract.broker import Broker
from contract.connection import without_password
from contract.errors import BrokerDown
from contract.messages import JOB_LEVEL
from telemetry.redis_watch import RedisWatch
from worker.liveness import Detector, reap_own
from worker.pair import Condition, ProcessPair
from worker.pid_space import pid_space
from worker.progress import WorkerState
from worker.settings import WorkerSettings
from worker.supervisor_metrics import WorkerMeter, count_redis_outage

log = structlog.get_logger(__name__)

BEAT_S = 0.2
REAP_TIMEOUT_S = 2.0  # then the other workers' detectors do it
DRAIN_MARGIN_S = 5.0  # for publishing and handing back, beyond drain_timeout_s
FIRST_RESTART_WAIT_S = 0.1
LONGEST_RESTART_WAIT_S = 5.0


class Supervisor:
    """One worker, over all restarts of its engine process."""

    def __init__(self, settings: WorkerSettings, broker: Broker, command: Sequence[str]) -> None:
        """Args: command: starts an engine process; see ProcessPair."""
        self._settings = settings
        self._broker = broker
        self._command = command
        self._current_id = ""
        self._deaths: deque[float] = deque()
        self._is_broker_down = False
        self._meter = WorkerMeter(settings.served_name)

    @property
    def meter(self) -> WorkerMeter:
        """What it tells of itself."""
        return self._meter

    async def run(self, pair: ProcessPair, stop: asyncio.Event, force: asyncio.Event) -> int:
        """Run until `stop` and everything held is finished or handed back; return the process' exit status.

        Args:
            pair: the first processes, started already.
            stop: drain, then end.
            force: do not wait for the drain.
        """
        detector = Detector(
            self._broker,
            self._settings.served_name,
            dead_after_ms=self._settings.dead_after_ms,
            own_id=lambda: self._current_id,
        )
        async with asyncio.TaskGroup() as group:
            watching = [
                group.create_task(detector.run(), name="detect"),
                group.create_task(RedisWatch(self._broker.find_weaknesses).run(), name="redis-watch"),
            ]
            status = await self._keep_running(pair, stop, force)
            for task in watching:
                task.cancel()
        return status

    async def _keep_running(self, pair: ProcessPair, stop: asyncio.Event, force: asyncio.Event) -> int:
        while True:
            self._current_id = pair.worker_id
            self._meter.attend(pair.progress)
            log.info("engine process started", worker_id=pair.worker_id, pid=pair.pid, serving_pid=pair.serving_pid)
            try:
                await self._attend(pair, stop, force)
                await self._free(pair.worker_id)
                status = await pair.wait()
            finally:
                self._meter.ended(died=not stop.is_set())
                pair.close()
            if stop.is_set():
                drained = (0, -signal.SIGTERM)  # the signal itself ends a process that has not begun to serve
                return 0 if status in drained else exit_status.GAVE_UP
            if status == exit_status.UNFIT:
                log.error("engine process cannot serve with these settings", status=status)
                return exit_status.UNFIT
            log.error("engine process ended", worker_id=pair.worker_id, status=status)
            if not self._may_restart():
                log.error("engine process keeps dying; giving up", num_deaths=len(self._deaths))
                return exit_status.GAVE_UP
            await self._wait_before_restart(stop)
            if stop.is_set():
                return 0
            pair = ProcessPair(self._command, stuck_after_s=self._settings.stuck_after_s)

    async def _attend(self, pair: ProcessPair, stop: asyncio.Event, force: asyncio.Event) -> None:
        """Beat for the processes until nothing is claimed or published any more; end them on `stop`."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._beat(pair), name="beat"),
                group.create_task(self._end_on(stop, pair), name="stop"),
                group.create_task(self._kill_on(force, pair), name="force"),
            ]
            await pair.serving_ended()
            for task in tasks:
                task.cancel()

    async def _beat(self, pair: ProcessPair) -> None:
        """Beat every BEAT_S, but not for a process that is stopped; one that is stuck is killed instead."""
        while True:
            started_s = time.monotonic()
            condition = pair.condition()
            if condition is Condition.STUCK:
                log.error("engine process is stuck; killing it", worker_id=pair.worker_id)
                pair.send(signal.SIGKILL)
                return
            if condition is Condition.WORKING:
                await self._beat_once(pair)
            await asyncio.sleep(max(0.0, started_s + BEAT_S - time.monotonic()))

    async def _beat_once(self, pair: ProcessPair) -> None:
        try:
            await self._broker.worker_beat(pair.worker_id, self._describe(pair))
        except BrokerDown:
            if not self._is_broker_down:
                log.warning("broker does not answer", redis=without_password(self._settings.redis_url))
                count_redis_outage()
            self._is_broker_down = True
        else:
            self._is_broker_down = False

    def _describe(self, pair: ProcessPair) -> dict[str, str]:
        progress = pair.progress
        return {
            "model": self._settings.served_name,
            "state": WorkerState(progress.state).name.lower(),
            "progress": f"{progress.loaded_permille / 1000:.3f}",
            "pid": str(pair.pid),
            "serving_pid": str(pair.serving_pid),
            "supervisor_pid": str(os.getpid()),
            "pid_space": pid_space(),
            "host": socket.gethostname(),
            "slots": str(progress.num_slots),
            "running": str(progress.num_running),
            "steps": str(progress.num_steps),
            "job_level": str(JOB_LEVEL),
            "device_age_ms": _age_ms(progress.device_ms),
            "device": progress.device,
            "quantization": progress.quantization,
            **self._meter.beat_fields(),
        }

    async def _end_on(self, stop: asyncio.Event, pair: ProcessPair) -> None:
        await stop.wait()
        pair.drain()
        await asyncio.sleep(self._settings.drain_timeout_s + DRAIN_MARGIN_S)
        log.error("engine process did not drain in time; killing it", worker_id=pair.worker_id)
        pair.send(signal.SIGKILL)

    async def _kill_on(self, force: asyncio.Event, pair: ProcessPair) -> None:
        await force.wait()
        pair.send(signal.SIGKILL)

    async def _free(self, worker_id: str) -> None:
        """Free what the ended process held, now: nobody has to wait until its heartbeat is missed."""
        try:
            async with asyncio.timeout(REAP_TIMEOUT_S):
                await reap_own(self._broker, worker_id, self._settings.served_name)
        except (BrokerDown, TimeoutError):
            log.warning("could not free what the processes held; others will", worker_id=worker_id)

    def _may_restart(self) -> bool:
        """Count a death; False when there were too many within the window."""
        now_s = time.monotonic()
        self._deaths.append(now_s)
        while self._deaths[0] < now_s - self._settings.restart_window_s:
            self._deaths.popleft()
        return len(self._deaths) <= self._settings.max_restarts

    async def _wait_before_restart(self, stop: asyncio.Event) -> None:
        wait_s = min(FIRST_RESTART_WAIT_S * 2 ** (len(self._deaths) - 1), LONGEST_RESTART_WAIT_S)
        try:
            async with asyncio.timeout(wait_s):
                await stop.wait()
        except TimeoutError:
            return


def _age_ms(moment_ms: int) -> str:
    """Milliseconds since a moment of the system's monotonic clock; '' for one that has not come."""
    return str(int(time.monotonic() * 1000) - moment_ms) if moment_ms else ""
