"""Tells at once when a watched process of this machine ends, without asking again and again."""

import asyncio
import os
from collections.abc import Iterable
from contextlib import suppress

from worker.pid_space import open_process


class Deaths:
    """Watches processes by pidfd. Belongs to the event loop that runs when it is made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pidfds: dict[tuple[str, str], int] = {}
        self._happened = asyncio.Event()

    def watch(self, processes: Iterable[tuple[str, str]]) -> None:
        """Watch these from now on, and no others. One that is gone already, or out of sight, is passed over.

        Args:
            processes: pid space and process id of each.
        """
        wanted = set(processes)
        for process in self._pidfds.keys() - wanted:
            self._forget(process)
        for process in wanted - self._pidfds.keys():
            with suppress(ProcessLookupError):
                if (pidfd := open_process(*process)) is not None:
                    self._pidfds[process] = pidfd
                    self._loop.add_reader(pidfd, self._note, pidfd)

    async def wait(self, timeout_s: float) -> None:
        """Return when one has ended since the last wait, or after `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._happened.wait()
        self._happened.clear()

    def close(self) -> None:
        """Watch nobody."""
        self.watch(())

    def _note(self, pidfd: int) -> None:
        self._loop.remove_reader(pidfd)  # it stays readable
        self._happened.set()

    def _forget(self, process: tuple[str, str]) -> None:
        pidfd = self._pidfds.pop(process)
        self._loop.remove_reader(pidfd)
        os.close(pidfd)
