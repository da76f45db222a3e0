"""A worker of three processes, with an engine double: deaths, restarts, drains."""

import os
import signal
from pathlib import Path

from contract import exit_status
from contract.broker import Broker
from contract.messages import JOB_LEVEL, EndReason
from tests.until import until, until_now
from tests.worker.engine_double import HANG, POISON, expected_ids
from tests.worker.rig import beat_of, finished, has_tokens, is_ready, make_job, read, submit, worker_process


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def engine_pid(broker: Broker, supervisor_pid: int) -> int:
    """The engine process that this supervisor beats for now."""
    beat = await beat_of(broker, supervisor_pid)
    assert beat is not None
    return int(beat.fields["pid"])


async def test_a_worker_serves_and_says_what_it_is(broker: Broker, redis_url: str, tmp_path: Path) -> None:
    """The beat tells model, state, slots, device, quantization and work done."""
    with worker_process(redis_url, tmp_path / "log") as worker:
        await until(lambda: is_ready(broker, worker.pid))
        generation_id = await submit(broker, make_job([1, 2], 30))
        logged = await finished(broker, generation_id)
        beat = await beat_of(broker, worker.pid)

    assert logged.ids == expected_ids([1, 2], 30)
    assert beat is not None
    said = {name: beat.fields[name] for name in ("model", "state", "progress", "slots", "device", "quantization")}
    assert said == {
        "model": "double",
        "state": "ready",
        "progress": "1.000",
        "slots": "16",
        "device": "double",
        "quantization": "fp16",
    }


async def test_a_killed_engine_process_is_replaced_and_its_job_goes_on(
    broker: Broker, redis_url: str, tmp_path: Path
) -> None:
    """The supervisor frees the job at once and the next engine process continues it."""
    with worker_process(redis_url, tmp_path / "log", DOUBLE_STEP_S="0.01") as worker:
        await until(lambda: is_ready(broker, worker.pid))
        generation_id = await submit(broker, make_job([3], 100))
        await until(lambda: has_tokens(broker, generation_id, 10))
        killed = await engine_pid(broker, worker.pid)
        os.kill(killed, signal.SIGKILL)
        logged = await finished(broker, generation_id)
        assert await engine_pid(broker, worker.pid) != killed

    assert logged.ids == expected_ids([3], 100)
    assert logged.attempts == [1, 2]


async def test_the_engine_process_dies_with_its_supervisor(broker: Broker, redis_url: str, tmp_path: Path) -> None:
    """Nobody would beat for it: it must not go on."""
    with worker_process(redis_url, tmp_path / "log") as worker:
        await until(lambda: is_ready(broker, worker.pid))
        engine = await engine_pid(broker, worker.pid)
        assert is_running(engine)
        worker.kill()
        worker.wait()
        await until(lambda: not is_running(engine))


async def test_a_stuck_engine_process_is_killed_and_replaced(broker: Broker, redis_url: str, tmp_path: Path) -> None:
    """Work without a step for stuck_after_s; the job that did it is poison in the end, the others are served."""
    with worker_process(redis_url, tmp_path / "log", HERD_WORKER_STUCK_AFTER_S="0.5") as worker:
        await until(lambda: is_ready(broker, worker.pid))
        hanging = await submit(broker, make_job([HANG], 5))
        other = await submit(broker, make_job([4], 5))
        assert (await finished(broker, other)).ids == expected_ids([4], 5)
        logged = await finished(broker, hanging)

    assert logged.ending is not None
    assert logged.ending.reason is EndReason.POISON


async def test_an_idle_engine_process_whose_device_hangs_is_replaced(
    broker: Broker, redis_url: str, tmp_path: Path
) -> None:
    """Its probe shows it, before any request meets it; until then the beat says that nothing was computed."""
    mark = tmp_path / "hangs"
    variables = {"HERD_WORKER_STUCK_AFTER_S": "0.5", "DOUBLE_PROBE_HANGS": str(mark)}
    with worker_process(redis_url, tmp_path / "log", **variables) as worker:
        await until(lambda: mark.exists() and mark.read_text() != "")

        async def is_replaced() -> bool:
            beat = await beat_of(broker, worker.pid)
            if beat is None:
                return False  # between the two
            assert beat.fields["job_level"] == str(JOB_LEVEL)
            if beat.fields["pid"] == mark.read_text():
                assert beat.fields["device_age_ms"] == ""
                return False
            return beat.fields["device_age_ms"].isdecimal()

        await until(is_replaced)
        generation_id = await submit(broker, make_job([1], 5))
        assert (await finished(broker, generation_id)).ids == expected_ids([1], 5)


async def test_a_job_that_kills_its_workers_is_set_aside(broker: Broker, redis_url: str, tmp_path: Path) -> None:
    """It ends as POISON after the cap; jobs that were in the same worker finish, token for token."""
    with worker_process(redis_url, tmp_path / "log", DOUBLE_STEP_S="0.005") as worker:
        await until(lambda: is_ready(broker, worker.pid))
        others = [await submit(broker, make_job([number + 1], 60)) for number in range(4)]
        poison = await submit(broker, make_job([POISON], 5))
        ended = await finished(broker, poison)
        for number, generation_id in enumerate(others):
            logged = await finished(broker, generation_id)
            assert logged.ending is not None
            assert logged.ending.reason is EndReason.DONE
            assert logged.ids == expected_ids([number + 1], 60)

    assert ended.ending is not None
    assert ended.ending.reason is EndReason.POISON
    assert ended.ids == []


async def test_sigterm_drains_and_ends_well(broker: Broker, redis_url: str, tmp_path: Path) -> None:
    """What cannot be finished is handed back with all that was generated; the status is 0."""
    with worker_process(redis_url, tmp_path / "log", DOUBLE_STEP_S="0.01", HERD_WORKER_DRAIN_TIMEOUT_S="0.2") as worker:
        await until(lambda: is_ready(broker, worker.pid))
        generation_id = await submit(broker, make_job([5], 5000))
        await until(lambda: has_tokens(broker, generation_id, 5))
        worker.send_signal(signal.SIGTERM)
        await until(lambda: worker.poll() is not None)
    assert worker.returncode == 0

    so_far = await read(broker, generation_id)
    assert so_far.ending is None
    assert so_far.ids == expected_ids([5], len(so_far.ids))
    with worker_process(redis_url, tmp_path / "log", DOUBLE_STEP_S="0"):
        logged = await finished(broker, generation_id, timeout_s=60)
    assert logged.ids == expected_ids([5], 5000)
    assert logged.attempts == [1, 2]


async def test_a_sigterm_to_all_processes_at_once_drains(broker: Broker, redis_url: str, tmp_path: Path) -> None:
    """As whoever ends a whole control group sends it: the engine is needed until the last token."""
    with worker_process(redis_url, tmp_path / "log", DOUBLE_STEP_S="0.01") as worker:
        await until(lambda: is_ready(broker, worker.pid))
        generation_id = await submit(broker, make_job([7], 100))
        await until(lambda: has_tokens(broker, generation_id, 5))
        beat = await beat_of(broker, worker.pid)
        assert beat is not None
        for pid in (int(beat.fields["pid"]), int(beat.fields["serving_pid"]), worker.pid):
            os.kill(pid, signal.SIGTERM)
        await until(lambda: worker.poll() is not None)
    assert worker.returncode == 0
    logged = await read(broker, generation_id)
    assert logged.ids == expected_ids([7], 100)
    assert logged.attempts == [1]


async def test_a_second_signal_does_not_wait(broker: Broker, redis_url: str, tmp_path: Path) -> None:
    """The job is freed for others nevertheless."""
    with worker_process(redis_url, tmp_path / "log", DOUBLE_STEP_S="0.01", HERD_WORKER_DRAIN_TIMEOUT_S="600") as worker:
        await until(lambda: is_ready(broker, worker.pid))
        generation_id = await submit(broker, make_job([6], 100_000))
        await until(lambda: has_tokens(broker, generation_id, 5))
        worker.send_signal(signal.SIGTERM)
        await until(lambda: is_draining(broker, worker.pid))
        worker.send_signal(signal.SIGINT)
        await until(lambda: worker.poll() is not None)

    assert worker.returncode == exit_status.GAVE_UP
    assert await broker.consumers("double") == []


async def is_draining(broker: Broker, pid: int) -> bool:
    """Whether that worker says so."""
    beat = await beat_of(broker, pid)
    return beat is not None and beat.fields["state"] == "draining"


def test_a_crash_loop_gives_up(redis_url: str, tmp_path: Path) -> None:
    """After max_restarts within the window: an error that says so, and a status that is not 0."""
    log = tmp_path / "log"
    with worker_process(redis_url, log, DOUBLE_LOAD="crash", HERD_WORKER_MAX_RESTARTS="2") as worker:
        until_now(lambda: worker.poll() is not None)
    assert worker.returncode == exit_status.GAVE_UP
    assert log.read_text().count("engine process started") == 3
    assert "engine process keeps dying; giving up" in log.read_text()


def test_a_folder_that_cannot_be_served_is_not_tried_again(redis_url: str, tmp_path: Path) -> None:
    """A restart cannot help: one error that names the folder, and the status for bad configuration."""
    log = tmp_path / "log"
    with worker_process(redis_url, log, DOUBLE_LOAD="unfit") as worker:
        until_now(lambda: worker.poll() is not None)
    assert worker.returncode == exit_status.UNFIT
    assert "/double holds no model" in log.read_text()
    assert log.read_text().count("engine process started") == 1
