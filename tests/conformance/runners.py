"""How clients run scenarios: a program of theirs, or a page."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.lifetime import bound
from tests.herd_process import ROOT

MAX_LINE_BYTES = 16 * 1024 * 1024
Observation = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Runner:
    """One client.

    Attributes:
        gateways: where it reaches them, by name.
        run: takes {gateways, steps} and gives an observation of each step.
        at: the gateways that it is given by a step that names none.
    """

    gateways: Mapping[str, str]
    run: Callable[[Mapping[str, Any]], Awaitable[list[Observation]]]
    at: Sequence[str] = ("one", "two")


class Program:
    """A client's program: a scenario is a line of its standard input, observations are a line of its standard output.

    It is started by the first scenario, and again by the next one if it has failed.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._command = command
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    async def run(
        self, scenario: Mapping[str, Any], heard: Callable[[str], Awaitable[None]] | None = None
    ) -> list[Observation]:
        """The observations.

        Args:
            heard: is given what a step with `tell_after` tells.
        """
        process = self._process or await self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(scenario).encode() + b"\n")
            while True:
                line = await process.stdout.readline()
                assert line, f"it ended:\n{self._log.read_text()[-4000:]}"
                said: str | list[Observation] = json.loads(line)
                if isinstance(said, list):
                    return said
                assert heard is not None
                await heard(said)
        except BaseException:
            self._kill()
            self._process = None
            raise

    async def end(self) -> None:
        """No more scenarios."""
        if self._process is not None:
            self._kill()
            await self._process.wait()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            if self._process is not None:
                self._process.kill()

    async def _start(self) -> asyncio.subprocess.Process:
        with self._log.open("wb") as sink:
            self._process = await asyncio.create_subprocess_exec(
                *bound(self._command),
                cwd=ROOT,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=sink,
                limit=MAX_LINE_BYTES,
            )
        return self._process
