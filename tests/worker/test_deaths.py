"""Watched processes: an end is told once, at once; what is out of sight or gone already is passed over."""

import asyncio
import os
import subprocess

from worker.deaths import Deaths
from worker.pid_space import is_gone, pid_space

FOR_EVER_S = 600.0


async def test_an_end_is_told_though_nobody_has_buried_the_process(sleeper: "subprocess.Popen[bytes]") -> None:
    """By then `is_gone` says so too."""
    deaths = Deaths()
    process = pid_space(), str(sleeper.pid)
    deaths.watch([process, process])
    assert not is_gone(*process)
    sleeper.kill()
    await deaths.wait(FOR_EVER_S)
    assert is_gone(*process)
    deaths.close()


async def test_an_end_is_told_once(sleeper: "subprocess.Popen[bytes]") -> None:
    """The loop does not spin on what has ended."""
    deaths = Deaths()
    deaths.watch([(pid_space(), str(sleeper.pid))])
    sleeper.kill()
    await deaths.wait(FOR_EVER_S)
    waiting = asyncio.create_task(deaths.wait(FOR_EVER_S))
    sleeper.wait()
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.wait([waiting])
    deaths.close()


async def test_what_is_gone_or_out_of_sight_is_passed_over(sleeper: "subprocess.Popen[bytes]") -> None:
    """And nothing stays open for it, nor for what is watched no more."""
    sleeper.kill()
    sleeper.wait()
    num_open = len(os.listdir("/proc/self/fd"))
    deaths = Deaths()
    own = pid_space(), str(os.getpid())
    deaths.watch([(pid_space(), str(sleeper.pid)), ("another machine", own[1]), ("", own[1]), (own[0], "x"), own])
    assert len(os.listdir("/proc/self/fd")) == num_open + 1
    deaths.watch([])
    assert len(os.listdir("/proc/self/fd")) == num_open
