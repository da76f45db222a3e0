"""What the supervisor sees of its child: working, stopped, stuck, ended."""

import asyncio
import signal
import sys
from collections.abc import Iterator

import pytest

from tests.until import until
from worker.engine_process import Condition, EngineProcess

READY_AND_IDLE = """
import sys, time
from worker.progress import Progress, WorkerState
page = Progress(int(sys.argv[2]))
page.state = WorkerState.READY
while True:
    page.num_turns += 1
    time.sleep(0.01)
"""
STUCK = READY_AND_IDLE.replace("page.num_turns += 1", "page.num_turns += 1; page.has_work = 1")
LOOP_STANDS = READY_AND_IDLE.replace("page.num_turns += 1", "pass")
LOADS = "import time; time.sleep(600)"


@pytest.fixture
def started() -> Iterator[list[EngineProcess]]:
    """Processes to be ended after the test."""
    processes: list[EngineProcess] = []
    yield processes
    for process in processes:
        process.close()


def start(started: list[EngineProcess], code: str) -> EngineProcess:
    """A child that runs this code."""
    process = EngineProcess([sys.executable, "-c", code], stuck_after_s=0.3)
    started.append(process)
    return process


async def conditions(process: EngineProcess, num_looks: int) -> set[Condition]:
    """What looks at the pace of heartbeats see."""
    seen = set()
    for _ in range(num_looks):
        seen.add(process.condition())
        await asyncio.sleep(0.05)
    return seen


async def test_a_process_without_work_is_never_stuck(started: list[EngineProcess]) -> None:
    """An idle engine makes no step for ever, and that is fine."""
    process = start(started, READY_AND_IDLE)
    await until(lambda: process.progress.num_turns > 0)
    assert await conditions(process, 12) == {Condition.WORKING}


async def test_work_without_a_step_is_stuck(started: list[EngineProcess]) -> None:
    """After stuck_after_s, and not before."""
    process = start(started, STUCK)
    await until(lambda: process.progress.has_work == 1)
    assert process.condition() is Condition.WORKING
    await until(lambda: process.condition() is Condition.STUCK)


async def test_an_event_loop_that_does_not_turn_is_stuck(started: list[EngineProcess]) -> None:
    """Nothing is published then, however busy the engine is."""
    process = start(started, LOOP_STANDS)
    await until(lambda: process.condition() is Condition.STUCK)


async def test_loading_is_never_stuck(started: list[EngineProcess]) -> None:
    """A big model takes minutes, without a step."""
    process = start(started, LOADS)
    assert await conditions(process, 12) == {Condition.WORKING}


async def test_a_stopped_process_is_not_stuck_when_it_goes_on(started: list[EngineProcess]) -> None:
    """Who stopped it had a reason; the time does not count against it."""
    process = start(started, READY_AND_IDLE)
    await until(lambda: process.progress.num_turns > 0)
    process.send(signal.SIGSTOP)
    await until(lambda: process.condition() is Condition.STOPPED)
    assert await conditions(process, 12) == {Condition.STOPPED}
    process.send(signal.SIGCONT)
    await until(lambda: process.condition() is not Condition.STOPPED)
    assert await conditions(process, 3) == {Condition.WORKING}


async def test_the_end_is_told_at_once(started: list[EngineProcess]) -> None:
    """By its status: -9 for SIGKILL."""
    process = start(started, LOADS)
    waiting = asyncio.create_task(process.wait())
    process.send(signal.SIGKILL)
    assert await asyncio.wait_for(waiting, timeout=10) == -signal.SIGKILL
