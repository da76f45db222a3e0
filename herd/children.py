"""Processes that `herd up` keeps running, and that never outlive it."""

import asyncio
import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contract.exit_status import UNFIT
from contract.lifetime import bound


class ChildFailed(RuntimeError):
    """A child that must run ended for good, or ended again and again. The text ends with what it said last."""

    def __init__(self, name: str, code: int | None, log: Path) -> None:
        ended = "cannot run" if code == UNFIT else f"ended with code {code}"
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        super().__init__("\n  ".join([f"{name} {ended}", *last_words(lines)]))


def last_words(log: Sequence[str], at_most: int = 5) -> list[str]:
    """What a person needs of a child's log: its last errors as text, each once; without any, its last lines."""
    said: dict[str, None] = {}
    for line in log:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("level") in ("error", "critical"):
            cause = str(event.get("error") or event.get("exception", "")).strip().rpartition("\n")[2]
            said[f"{event.get('event')}: {cause}" if cause else str(event.get("event"))] = None
    return list(said or dict.fromkeys(log[-at_most:]))[-at_most:]


@dataclass(slots=True)
class Child:
    """One process, started again when it dies.

    Invariant: at most one instance runs; after `stop` none does. `max_restarts` deaths within `window_s` give up, and
    so does one with UNFIT.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    log: Path
    verbose: bool = False
    max_restarts: int = 0
    window_s: float = 60.0
    process: asyncio.subprocess.Process | None = None
    _deaths: list[float] = field(default_factory=list)

    async def start(self) -> None:
        """Start an instance; its errors go to the log, or to our own with `verbose`."""
        sink = None if self.verbose else self.log.open("ab")
        try:
            self.process = await asyncio.create_subprocess_exec(
                *bound(self.command),
                env=dict(self.env),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sink if sink else sys.stderr,
                stderr=sink,
                start_new_session=True,  # a Ctrl-C reaches only us; we stop the children in order
            )
        finally:
            if sink:
                sink.close()

    async def keep(self) -> None:
        """Run until cancelled, starting again after each death. Raises ChildFailed when it does not help."""
        while True:
            assert self.process is not None
            code = await self.process.wait()
            now = time.monotonic()
            self._deaths = [t for t in self._deaths if now - t < self.window_s] + [now]
            if code == UNFIT or len(self._deaths) > self.max_restarts:
                raise ChildFailed(self.name, code, self.log)
            await self.start()

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, then after `grace_s` SIGKILL."""
        if self.process is None or self.process.returncode is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
