"""A spawned child dies with its parent."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from contract.lifetime import spawn
from tests.until import until_now

ROOT = Path(__file__).parents[2]
PARENT = """
import sys, time
from contract.lifetime import spawn
child = spawn([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_child_of_a_killed_parent_is_killed() -> None:
    """SIGKILL gives the parent no chance to act; the kernel ends the child."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout is not None
        said = {parent.stdout.readline().strip() for _ in range(2)}
        child_pid = int(next(line for line in said if line != b"up"))
        assert b"up" in said
        assert is_running(child_pid)

        parent.kill()
        parent.wait()

        until_now(lambda: not is_running(child_pid))


def test_a_child_keeps_its_pid_environment_and_files() -> None:
    """The launcher replaces itself: signals and `wait` reach the command itself."""
    read_fd, write_fd = os.pipe()
    code = f"import os; os.write({write_fd}, f'{{os.getpid()}} {{os.environ[\"GREETING\"]}}'.encode())"
    child = spawn([sys.executable, "-c", code], env={**os.environ, "GREETING": "hi"}, pass_fds=[write_fd])
    os.close(write_fd)
    with os.fdopen(read_fd) as said:
        assert said.read() == f"{child.pid} hi"
    assert child.wait(timeout=10) == 0


def test_an_interrupt_at_the_terminal_does_not_reach_the_child() -> None:
    """A child has a process group of its own: the parent decides in which order things stop."""
    child = spawn([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        assert os.getpgid(child.pid) != os.getpgrp()
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=10)


def test_a_command_that_does_not_exist_is_named(tmp_path: Path) -> None:
    """The launcher says which program is missing, and fails."""
    with (tmp_path / "err").open("wb") as errors:
        child = spawn(["no-such-program-here"], stderr=errors)
        assert child.wait(timeout=10) != 0
    assert "no-such-program-here" in (tmp_path / "err").read_text()
