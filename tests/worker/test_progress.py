"""Counters cross a process border through one page."""

import os
import subprocess
import sys
from pathlib import Path

from worker.progress import Progress, WorkerState

ROOT = Path(__file__).parents[2]
WRITER = """
import sys
from worker.progress import Progress, WorkerState
page = Progress(int(sys.argv[1]))
page.state = WorkerState.DRAINING
page.num_steps = 2**40
page.device = "cuda:0"
"""


def test_what_the_child_writes_the_parent_reads() -> None:
    """The page outlives its writer."""
    progress, fd = Progress.create()
    assert (progress.state, progress.num_steps, progress.device) == (WorkerState.LOADING, 0, "")

    subprocess.run([sys.executable, "-c", WRITER, str(fd)], pass_fds=[fd], cwd=ROOT, check=True)
    os.close(fd)

    assert (progress.state, progress.num_steps, progress.device) == (WorkerState.DRAINING, 2**40, "cuda:0")
    progress.close()
