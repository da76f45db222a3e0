"""Detectors at a real server: who stands still is reaped, who beats is not, and an outage kills nobody."""

import asyncio
import signal
import subprocess
from contextlib import suppress

import pytest

from contract.broker import Broker, State, Taken
from contract.errors import BrokerDown
from tests.redis_server import RunningServer
from tests.until import until
from tests.worker.rig import MODEL, make_job, submit
from worker.liveness import Detector, reap_own
from worker.pid_space import pid_space

DEAD_AFTER_MS = 300


def detector(broker: Broker) -> Detector:
    """One that calls a worker dead after DEAD_AFTER_MS."""
    return Detector(broker, MODEL, dead_after_ms=DEAD_AFTER_MS, own_id=lambda: "watcher")


async def hold_a_job(broker: Broker, worker_id: str) -> str:
    """This worker has taken a job."""
    generation_id = await submit(broker, make_job([1], 5))
    (entry,) = await broker.read_jobs(worker_id, MODEL, "normal", count=1, block_ms=0)
    assert isinstance(await broker.take(entry, worker_id=worker_id, lease="1"), Taken)
    return generation_id


async def state_of(broker: Broker, generation_id: str) -> State:
    """Where the generation stands."""
    (standing,) = await broker.standings([generation_id])
    assert standing is not None
    return standing.state


async def polls(watcher: Detector, count: int) -> None:
    """So many looks, at a detector's pace."""
    for _ in range(count):
        await watcher.poll()
        await asyncio.sleep(0.12)


async def test_a_worker_whose_heartbeat_stands_still_is_reaped(broker: Broker) -> None:
    """What it held becomes free."""
    await broker.worker_beat("gone", {})
    generation_id = await hold_a_job(broker, "gone")
    watcher = detector(broker)
    await watcher.poll()
    await watcher.poll()
    assert await state_of(broker, generation_id) is State.RUNNING  # two looks prove nothing
    await polls(watcher, 5)
    assert await state_of(broker, generation_id) is State.FREE
    assert await broker.consumers(MODEL) == []


async def test_a_death_on_the_same_machine_needs_no_heartbeat(broker: Broker) -> None:
    """One look shows that the supervisor's process is gone; one that is only stopped, or elsewhere, is watched."""
    child = await asyncio.create_subprocess_exec("sleep", "600")
    for worker_id, space in (("near", pid_space()), ("far", "another machine")):
        await broker.worker_beat(worker_id, {"supervisor_pid": str(child.pid), "pid_space": space})
    near, far = [await hold_a_job(broker, worker_id) for worker_id in ("near", "far")]
    watcher = detector(broker)
    child.send_signal(signal.SIGSTOP)
    await watcher.poll()
    assert await state_of(broker, near) is State.RUNNING
    child.kill()
    await child.wait()
    await watcher.poll()
    assert await state_of(broker, near) is State.FREE
    assert await state_of(broker, far) is State.RUNNING


async def test_a_death_on_the_same_machine_is_noticed_without_looking_again(
    broker: Broker, sleeper: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process itself tells, although nobody has buried it yet."""
    monkeypatch.setattr("worker.liveness.POLL_S", 600.0)
    await broker.worker_beat("near", {"supervisor_pid": str(sleeper.pid), "pid_space": pid_space()})
    generation_id = await hold_a_job(broker, "near")
    watcher = Detector(broker, MODEL, dead_after_ms=600_000, own_id=lambda: "watcher")
    watching = asyncio.create_task(watcher.run())
    await until(lambda: "near" in watcher._watched)
    sleeper.kill()

    async def is_free() -> bool:
        return await state_of(broker, generation_id) is State.FREE

    await until(is_free)
    watching.cancel()
    await asyncio.wait([watching])


async def test_a_worker_that_beats_is_left_alone(broker: Broker) -> None:
    """However long it is watched."""
    generation_id = await hold_a_job(broker, "living")
    watcher = detector(broker)
    for _ in range(8):
        await broker.worker_beat("living", {})
        await polls(watcher, 1)
    assert await state_of(broker, generation_id) is State.RUNNING


async def test_a_worker_without_any_heartbeat_is_dead(broker: Broker) -> None:
    """Its key may have expired long ago; what it held is still pending."""
    generation_id = await hold_a_job(broker, "forgotten")
    await polls(detector(broker), 6)
    assert await state_of(broker, generation_id) is State.FREE


async def test_a_pause_of_the_watcher_kills_nobody(broker: Broker) -> None:
    """It saw one value, slept, and sees the same value: that proves nothing about the time between."""
    await broker.worker_beat("slow", {})
    generation_id = await hold_a_job(broker, "slow")
    watcher = detector(broker)
    for _ in range(4):
        await watcher.poll()
        await asyncio.sleep(0.7)  # longer than a watcher may be away
    assert await state_of(broker, generation_id) is State.RUNNING


async def test_an_outage_kills_nobody(broker: Broker, server: RunningServer) -> None:
    """Heartbeats cannot be written during it either: the watch starts over when it is over."""
    await broker.worker_beat("silent", {})
    generation_id = await hold_a_job(broker, "silent")
    watching = asyncio.create_task(detector(broker).run())
    beating = asyncio.create_task(beat_for_ever(broker, "silent"))
    await polls(detector(broker), 2)
    server.settle()
    server.kill()
    await asyncio.sleep(2 * DEAD_AFTER_MS / 1000)
    server.start()
    await until(lambda: beats_again(broker, "silent"))
    state = await state_of(broker, generation_id)
    for task in (watching, beating):
        task.cancel()
    await asyncio.wait([watching, beating])
    assert state is State.RUNNING


async def beat_for_ever(broker: Broker, worker_id: str) -> None:
    """Beat as a supervisor does, outages included."""
    while True:
        with suppress(BrokerDown):
            await broker.worker_beat(worker_id, {})
        await asyncio.sleep(0.05)


async def beats_again(broker: Broker, worker_id: str) -> bool:
    """Whether the server answers and has counted further beats."""
    try:
        return any(each.worker_id == worker_id and int(each.beat) > 30 for each in await broker.pool())
    except BrokerDown:
        return False


async def test_a_supervisor_frees_what_its_child_held_at_once(broker: Broker) -> None:
    """It need not watch: it has seen the child end."""
    await broker.worker_beat("child", {})
    generation_id = await hold_a_job(broker, "child")
    await reap_own(broker, "child", MODEL)
    assert await state_of(broker, generation_id) is State.FREE
