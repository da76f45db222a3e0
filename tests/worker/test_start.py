"""A worker's first moments: its engine process runs before the supervisor has loaded all that it needs to attend it."""

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

import worker.__main__ as worker_main
from contract import exit_status
from tests.herd_process import ROOT, children_of, is_alive
from tests.until import until_now
from tests.worker.test_settings import environment

START = "import sys; from worker.__main__ import main; sys.exit(main(sys.argv[1:]))"
SLEEPS = (sys.executable, "-S", "-c", "import time; time.sleep(600)")
ENDS = (sys.executable, "-S", "-c", f"raise SystemExit({exit_status.UNFIT})")


@contextmanager
def starting(engine_command: Sequence[str], **variables: str) -> "Iterator[subprocess.Popen[str]]":
    """A worker that has just been started. Its output ends when none of its processes is left."""
    command = [sys.executable, "-c", START, *engine_command]
    env = environment(HERD_WORKER_MODEL_PATH="/double", **variables)
    with subprocess.Popen(
        command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said_by(process: "subprocess.Popen[str]") -> str:
    """What all its processes have said, once all have ended."""
    said, _ = process.communicate(timeout=60)
    return said


def test_a_wrong_setting_starts_no_engine_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told before anything else happens, and by one process."""
    monkeypatch.setattr(worker_main, "ProcessPair", lambda *_, **__: pytest.fail("an engine process was started"))
    monkeypatch.setenv("HERD_WORKER_MODEL_PATH", "/double")
    monkeypatch.setenv("HERD_WORKER_QUANTIZATION", "int4")

    assert worker_main.main() == exit_status.UNFIT
    assert "HERD_WORKER_QUANTIZATION: Input should be" in capsys.readouterr().err


def test_a_supervisor_that_cannot_run_ends_the_engine_process() -> None:
    """Its Redis' address is wrong, which is found when the engine process has been started."""
    with starting(SLEEPS, HERD_WORKER_REDIS_URL="redis:6379") as worker:
        assert "'redis:6379' is no address of a Redis" in said_by(worker)
    assert worker.returncode == exit_status.UNFIT


def test_an_engine_process_that_ends_unattended_is_told_of(redis_url: str) -> None:
    """By its status, as any other: this one says that a restart cannot help, so there is no second."""
    with starting(ENDS, HERD_WORKER_REDIS_URL=redis_url) as worker:
        said = said_by(worker)
    assert worker.returncode == exit_status.UNFIT
    assert said.count("engine process started") == 1
    assert "engine process cannot serve with these settings" in said


@pytest.mark.parametrize("is_started", [False, True])
def test_a_sigterm_of_the_first_moments_ends_both(redis_url: str, is_started: bool) -> None:
    """Before the supervisor heeds signals it ends by it, and its children with it; then all end in order."""
    with starting(SLEEPS, HERD_WORKER_REDIS_URL=redis_url) as worker:
        if is_started:
            until_now(lambda: children_of(worker.pid))
        worker.send_signal(signal.SIGTERM)
        said_by(worker)
    assert worker.returncode in (0, -signal.SIGTERM)


def test_an_engine_process_dies_with_the_supervisor_that_never_attended_it(redis_url: str) -> None:
    """The kernel sees to it from the first moment on."""
    with starting(SLEEPS, HERD_WORKER_REDIS_URL=redis_url) as worker:
        until_now(lambda: len(children_of(worker.pid)) == 2)
        children = children_of(worker.pid)
        worker.kill()
        said_by(worker)
    until_now(lambda: not any(map(is_alive, children)))
    assert worker.returncode == -signal.SIGKILL
