"""A real `herd up` as a child process, for tests that talk to it as strangers would."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from contract.lifetime import spawn

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class HerdProcess:
    """Where a herd listens and which processes it is made of (name -> pid; workers' are their supervisors').

    Attributes:
        log: what `herd up` has said, with its processes' own lines.
    """

    address: str
    redis_url: str
    model: str
    pids: Mapping[str, int]
    process: "subprocess.Popen[bytes]"
    log: Path

    def engine_pid(self, worker: str) -> int:
        """The engine process under a worker's supervisor."""
        return children_of(self.pids[worker])[0]

    def all_pids(self) -> list[int]:
        """Every process of the herd, the first one last."""
        found = [self.process.pid]
        for pid in found:
            found += children_of(pid)
        return found[::-1]


def children_of(pid: int) -> list[int]:
    """The child processes of `pid`, by every thread of it."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in path.read_text().split()]
    return found


def is_alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def herd_up(*arguments: str, env: Mapping[str, str] | None = None) -> Iterator[HerdProcess]:
    """`herd up --port 0` with these arguments, ready; stopped in order at the end."""
    with tempfile.TemporaryDirectory(prefix="herd-test-") as folder:
        ready = Path(folder) / "ready.json"
        log = Path(folder) / "up.log"
        command: Sequence[str] = (sys.executable, "-m", "herd", "up", "--port", "0", "--verbose")
        with log.open("wb") as sink:
            whole = [*command, "--ready-file", str(ready), *arguments]
            process = spawn(whole, env={**os.environ, **(env or {})}, stdout=sink, stderr=sink)
        try:
            while not ready.exists():
                assert process.poll() is None, f"herd up ended with {process.returncode}:\n{log.read_text()[-4000:]}"
                time.sleep(0.02)
            said = json.loads(ready.read_text())
            yield HerdProcess(said["address"], said["redis_url"], said["model"], said["pids"], process, log)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
