"""The engine process as its supervisor sees it: a child, its counters, and whether it is stuck."""

import asyncio
import enum
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from contract import keys
from contract.lifetime import spawn
from worker.progress import Progress, WorkerState
from worker.stillness import Stillness


class Condition(enum.Enum):
    """What the supervisor sees of the engine process."""

    WORKING = "working"  # it steps, sleeps without work, or loads
    STOPPED = "stopped"  # by a signal or a debugger: it computes nothing, nobody knows for how long
    STUCK = "stuck"  # it has work and makes no step, or its event loop does not turn


class EngineProcess:
    """One start of the engine process, under a worker id of its own."""

    def __init__(self, command: Sequence[str], *, stuck_after_s: float) -> None:
        """Start it.

        Args:
            command: gets the worker id and the descriptor of the progress page as further arguments.
            stuck_after_s: how long work may stand still.
        """
        self.worker_id = keys.new_id()
        self.progress, fd = Progress.create()
        self._stuck_after_s = stuck_after_s
        self._engine_stillness = Stillness()
        self._loop_stillness = Stillness()
        try:
            self._child = spawn([*command, self.worker_id, str(fd)], pass_fds=[fd])
        finally:
            os.close(fd)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    async def wait(self) -> int:
        """The exit status, when there is one; -N after signal N. Only one caller at a time."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        pidfd = os.pidfd_open(self.pid)
        loop.add_reader(pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
        return self._child.wait()

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if the child has ended."""
        self._child.send_signal(number)

    def close(self) -> None:
        """Make sure that it has ended, and unmap its counters."""
        self._child.kill()
        self._child.wait()
        self.progress.close()

    def condition(self) -> Condition:
        """What to think of the process now. Call it at every heartbeat: pauses of the caller do not count."""
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

    def _is_stopped(self) -> bool:
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] in ("T", "t")
