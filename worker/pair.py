"""A worker's two processes as their supervisor sees them: children, their counters, and whether they are stuck.

One computes (worker.run_engine), the other serves (worker.serve): it claims and publishes. Neither is of use without
the other, so they end together.
"""

import asyncio
import enum
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from contract import exit_status, keys
from contract.lifetime import spawn
from worker.progress import Progress, WorkerState
from worker.stillness import Stillness

SERVING_COMMAND = (sys.executable, "-m", "worker.serve")
PARTNER_TIMEOUT_S = 5.0  # until a process is gone that has closed its end of the socket: a GPU's memory takes a while


class Condition(enum.Enum):
    """What the supervisor sees of the two processes."""

    WORKING = "working"  # they step, sleep without work, or load
    STOPPED = "stopped"  # by a signal or a debugger: nothing is computed or published, nobody knows for how long
    STUCK = "stuck"  # the engine has work and makes no step, or the event loop of the other does not turn


class ProcessPair:
    """One start of the two processes, under a worker id of its own."""

    def __init__(
        self, engine_command: Sequence[str], *, stuck_after_s: float, serving_command: Sequence[str] = SERVING_COMMAND
    ) -> None:
        """Start them.

        Args:
            engine_command: gets the descriptors of the progress page and of a socket as further arguments.
            stuck_after_s: how long work may stand still.
            serving_command: gets the worker id before these.
        """
        self.worker_id = keys.new_id()
        self.progress, page = Progress.create()
        self._stuck_after_s = stuck_after_s
        self._engine_stillness = Stillness()
        self._loop_stillness = Stillness()
        self._has_stopped_serving = False
        self._is_engine_cause = False  # of the end of both
        self._exits: tuple[asyncio.Task[int], asyncio.Task[int]] | None = None
        engine_end, serving_end = socket.socketpair()
        with engine_end, serving_end:
            try:
                self._engine = _start(engine_command, page, engine_end.fileno())
                self._serving = _start([*serving_command, self.worker_id], page, serving_end.fileno())
            finally:
                os.close(page)

    @property
    def pid(self) -> int:
        """The engine's process id."""
        return self._engine.pid

    @property
    def serving_pid(self) -> int:
        """The process id of what serves."""
        return self._serving.pid

    async def serving_ended(self) -> None:
        """Return when nothing is claimed or published any more, by itself or because the engine has ended.

        An engine's own end may take longer: a GPU's memory is given back first.
        """
        engine, serving = self._watch()
        await asyncio.wait((engine, serving), return_when=asyncio.FIRST_COMPLETED)
        if not serving.done() and engine.result() == exit_status.PARTNER_GONE:
            await asyncio.wait([serving], timeout=PARTNER_TIMEOUT_S)
        if not serving.done() and engine.result() != 0:  # with 0 it was told to stop; the other publishes the rest
            self._is_engine_cause = True
            self._serving.kill()
        await asyncio.wait([serving])

    async def wait(self) -> int:
        """The exit status of the worker, once both have ended; -N after signal N. It is the status of the cause."""
        await self.serving_ended()
        engine, serving = self._watch()
        if serving.result() == exit_status.PARTNER_GONE:
            self._is_engine_cause = True
        if self._is_engine_cause:
            await asyncio.wait([engine], timeout=PARTNER_TIMEOUT_S)
        status = serving.result()
        if self._is_engine_cause:
            status = engine.result() if engine.done() else exit_status.CRASHED
        self._engine.kill()
        await asyncio.wait([engine])
        return status

    def drain(self) -> None:
        """Tell them to finish what they hold, and end; nothing happens if they have."""
        self._serving.send_signal(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        """Send both a signal; nothing happens to one that has ended."""
        self._serving.send_signal(number)
        self._engine.send_signal(number)

    def close(self) -> None:
        """Make sure that they have ended, and unmap their counters."""
        for child in (self._serving, self._engine):
            child.kill()
        for child in (self._serving, self._engine):
            child.wait()
        self.progress.close()

    def condition(self) -> Condition:
        """What to think of them now. Call it at every heartbeat: pauses of the caller do not count."""
        is_stopped = self._is_stopped()
        progress = self.progress
        if is_stopped or progress.state == WorkerState.LOADING:
            self._engine_stillness, self._loop_stillness = Stillness(), Stillness()
            return Condition.STOPPED if is_stopped else Condition.WORKING
        now_s = time.monotonic()
        engine_s = self._engine_stillness.look((progress.num_steps, progress.has_work), now_s)
        loop_s = self._loop_stillness.look(progress.num_turns, now_s)
        is_engine_stuck = bool(progress.has_work) and engine_s >= self._stuck_after_s
        return Condition.STUCK if is_engine_stuck or loop_s >= self._stuck_after_s else Condition.WORKING

    def _watch(self) -> "tuple[asyncio.Task[int], asyncio.Task[int]]":
        """The statuses of the engine and of what serves it, as they come."""
        if self._exits is None:
            self._exits = asyncio.create_task(_ended(self._engine)), asyncio.create_task(_ended(self._serving))
        return self._exits

    def _is_stopped(self) -> bool:
        """Whether one of them stands still. If it is the engine, so does the other: it would go on claiming jobs."""
        is_engine_stopped = _is_stopped(self.pid)
        if is_engine_stopped and not _is_stopped(self.serving_pid):
            self._serving.send_signal(signal.SIGSTOP)
            self._has_stopped_serving = True
        elif not is_engine_stopped and self._has_stopped_serving:
            self._serving.send_signal(signal.SIGCONT)
            self._has_stopped_serving = False
        return is_engine_stopped or _is_stopped(self.serving_pid)


def _start(command: Sequence[str], page: int, channel: int) -> "subprocess.Popen[bytes]":
    return spawn([*command, str(page), str(channel)], pass_fds=[page, channel])


async def _ended(child: "subprocess.Popen[bytes]") -> int:
    """The exit status, when there is one."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        pidfd = os.pidfd_open(child.pid)
    except ProcessLookupError:  # a signal was to be sent to it, which asks for its status first
        return child.wait()
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    return child.wait()


def _is_stopped(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in ("T", "t")
