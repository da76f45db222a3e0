"""What the supervisor sees of its children: working, stopped, stuck, ended."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator

import pytest

from contract import exit_status
from tests.herd_process import is_alive
from tests.until import until
from worker.pair import Condition, ProcessPair

TURNS = """
import sys, time
from worker.progress import Progress, WorkerState
page = Progress(int(sys.argv[2]))
page.state = WorkerState.READY
while True:
    page.num_turns += 1
    time.sleep(0.01)
"""
LOOP_STANDS = TURNS.replace("page.num_turns += 1", "pass")
LOADS = IDLE = "import time; time.sleep(600)"
STUCK = """
import sys, time
from worker.progress import Progress
Progress(int(sys.argv[1])).has_work = 1
time.sleep(600)
"""
ENDS = "import sys; sys.exit({status})"
ENDS_WHEN_ALONE = """
import socket, sys
socket.socket(fileno=int(sys.argv[-1])).recv(1)
sys.exit({status})
"""


@pytest.fixture
def started() -> Iterator[list[ProcessPair]]:
    """Processes to be ended after the test."""
    processes: list[ProcessPair] = []
    yield processes
    for process in processes:
        process.close()


def start(started: list[ProcessPair], engine: str, serving: str) -> ProcessPair:
    """Children that run this code."""
    process = ProcessPair(
        [sys.executable, "-c", engine], stuck_after_s=0.3, serving_command=[sys.executable, "-c", serving]
    )
    started.append(process)
    return process


async def conditions(process: ProcessPair, num_looks: int) -> set[Condition]:
    """What looks at the pace of heartbeats see."""
    seen = set()
    for _ in range(num_looks):
        seen.add(process.condition())
        await asyncio.sleep(0.05)
    return seen


async def test_a_process_without_work_is_never_stuck(started: list[ProcessPair]) -> None:
    """An idle engine makes no step for ever, and that is fine."""
    process = start(started, IDLE, TURNS)
    await until(lambda: process.progress.num_turns > 0)
    assert await conditions(process, 12) == {Condition.WORKING}


async def test_work_without_a_step_is_stuck(started: list[ProcessPair]) -> None:
    """After stuck_after_s, and not before."""
    process = start(started, STUCK, TURNS)
    await until(lambda: process.progress.has_work == 1)
    assert process.condition() is Condition.WORKING
    await until(lambda: process.condition() is Condition.STUCK)


async def test_an_event_loop_that_does_not_turn_is_stuck(started: list[ProcessPair]) -> None:
    """Nothing is published then, however busy the engine is."""
    process = start(started, IDLE, LOOP_STANDS)
    await until(lambda: process.condition() is Condition.STUCK)


async def test_loading_is_never_stuck(started: list[ProcessPair]) -> None:
    """A big model takes minutes, without a step."""
    process = start(started, LOADS, LOADS)
    assert await conditions(process, 12) == {Condition.WORKING}


async def test_a_stopped_process_is_not_stuck_when_it_goes_on(started: list[ProcessPair]) -> None:
    """Who stopped it had a reason; the time does not count against it."""
    process = start(started, IDLE, TURNS)
    await until(lambda: process.progress.num_turns > 0)
    process.send(signal.SIGSTOP)
    await until(lambda: process.condition() is Condition.STOPPED)
    assert await conditions(process, 12) == {Condition.STOPPED}
    process.send(signal.SIGCONT)
    await until(lambda: process.condition() is not Condition.STOPPED)
    assert await conditions(process, 3) == {Condition.WORKING}


async def test_an_engine_that_is_stopped_takes_the_other_along(started: list[ProcessPair]) -> None:
    """It would go on claiming jobs that nobody computes. Both go on together, and it is nobody's fault."""
    process = start(started, IDLE, TURNS)
    await until(lambda: process.progress.num_turns > 0)
    os.kill(process.pid, signal.SIGSTOP)
    await until(lambda: process.condition() is Condition.STOPPED)
    assert await conditions(process, 3) == {Condition.STOPPED}
    num_turns = process.progress.num_turns
    assert await conditions(process, 3) == {Condition.STOPPED}
    assert process.progress.num_turns == num_turns
    os.kill(process.pid, signal.SIGCONT)
    await until(lambda: process.condition() is Condition.WORKING and process.progress.num_turns > num_turns)


async def test_who_stopped_the_one_that_serves_lets_it_go_on(started: list[ProcessPair]) -> None:
    """Nobody else does: it may be a debugger."""
    process = start(started, IDLE, TURNS)
    await until(lambda: process.progress.num_turns > 0)
    os.kill(process.serving_pid, signal.SIGSTOP)
    await until(lambda: process.condition() is Condition.STOPPED)
    assert await conditions(process, 6) == {Condition.STOPPED}


@pytest.mark.parametrize("is_engine", [False, True])
async def test_one_that_is_killed_takes_the_other_along(started: list[ProcessPair], is_engine: bool) -> None:
    """The end is told by its status: -9 for SIGKILL."""
    process = start(started, LOADS, LOADS)
    waiting = asyncio.create_task(process.wait())
    os.kill(process.pid if is_engine else process.serving_pid, signal.SIGKILL)
    assert await asyncio.wait_for(waiting, timeout=10) == -signal.SIGKILL
    for pid in (process.pid, process.serving_pid):
        assert not is_alive(pid)


@pytest.mark.parametrize(
    ("engine", "serving", "status"),
    [
        (ENDS.format(status=exit_status.UNFIT), LOADS, exit_status.UNFIT),
        (LOADS, ENDS.format(status=exit_status.UNFIT), exit_status.UNFIT),
        (ENDS.format(status=exit_status.UNFIT), ENDS_WHEN_ALONE.format(status=exit_status.PARTNER_GONE), 78),
        (ENDS_WHEN_ALONE.format(status=exit_status.PARTNER_GONE), ENDS.format(status=exit_status.CRASHED), 1),
        (ENDS.format(status=0), ENDS_WHEN_ALONE.format(status=0), 0),
        (ENDS.format(status=0), ENDS_WHEN_ALONE.format(status=exit_status.CRASHED), 1),
        (LOADS, ENDS.format(status=0), 0),
    ],
)
async def test_the_status_is_that_of_the_cause(
    started: list[ProcessPair], engine: str, serving: str, status: int
) -> None:
    """Whichever is seen to end first: one that ends because the other did says so."""
    process = start(started, engine, serving)
    assert await asyncio.wait_for(process.wait(), timeout=20) == status


async def test_one_that_ended_before_it_was_watched_has_a_status(started: list[ProcessPair]) -> None:
    """Though a signal was to be sent to it, which asks for that status first."""
    process = start(started, LOADS, ENDS.format(status=exit_status.UNFIT))
    await until(lambda: not is_alive(process.serving_pid))
    process.drain()
    assert await asyncio.wait_for(process.wait(), timeout=10) == exit_status.UNFIT


async def test_who_frees_what_they_held_does_not_wait_for_a_gpu(
    started: list[ProcessPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that has closed its socket, and is long about the rest, is over for the one that serves it."""
    monkeypatch.setattr("worker.pair.PARTNER_TIMEOUT_S", 0.1)
    closes = "import os, sys, time; os.close(int(sys.argv[2])); time.sleep(600)"
    process = start(started, closes, ENDS_WHEN_ALONE.format(status=exit_status.PARTNER_GONE))
    await asyncio.wait_for(process.serving_ended(), timeout=10)
    assert is_alive(process.pid)
    assert await asyncio.wait_for(process.wait(), timeout=10) == exit_status.CRASHED
    assert not is_alive(process.pid)
