"""How clients run scenarios: a program of theirs, or a page."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.herd_process import ROOT

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


async def run_command(
    command: Sequence[str], scenario: Mapping[str, Any], heard: Callable[[str], Awaitable[None]] | None = None
) -> list[Observation]:
    """By a program: the scenario is its standard input, the observations its standard output, as JSON.

    Args:
        heard: is given each line of its standard error, as it comes.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env=os.environ,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    said = ""
    try:
        process.stdin.write(json.dumps(scenario).encode())
        process.stdin.write_eof()
        async with asyncio.TaskGroup() as group:
            observations = group.create_task(process.stdout.read())
            async for line in process.stderr:
                said += line.decode()
                if heard is not None:
                    await heard(line.decode().strip())
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, said
    seen: list[Observation] = json.loads(observations.result())
    return seen
