"""A `herd up` for one occasion: `--up` of the commands that talk to a herd."""

import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contract.lifetime import spawn


class NoHerd(RuntimeError):
    """The private `herd up` ended before it served."""


@contextmanager
def private_herd() -> Iterator[str]:
    """The address of a `herd up` that lives as long as this block."""
    with tempfile.TemporaryDirectory(prefix="herd-") as folder:
        ready_file = Path(folder) / "ready.json"
        command = [sys.executable, "-m", "herd", "up", "--port", "0", "--ready-file", str(ready_file)]
        herd = spawn(command)
        try:
            while not ready_file.exists():
                if herd.poll() is not None:
                    raise NoHerd(f"`herd up` ended with code {herd.returncode}")
                time.sleep(0.05)
            yield json.loads(ready_file.read_text())["address"]
        finally:
            herd.send_signal(signal.SIGTERM)
            herd.wait()
