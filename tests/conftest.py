"""Fixtures that several test folders share: a herd with the demo model, started once, and the Go client, built once."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.herd_process import HerdProcess
from tests.herd_process import herd_up as start_herd

ROOT = Path(__file__).parent.parent
GO_BIN = ROOT / ".tools" / "go" / "bin"

hypothesis.settings.register_profile("same-every-time", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("same-every-time")

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as a shell starts what runs in its background; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def herd_up() -> Iterator[HerdProcess]:
    """A herd of one gateway and one worker that serves the demo model on the CPU."""
    with start_herd("--device", "cpu") as herd:
        yield herd


@pytest.fixture(scope="session")
def go_programs() -> Path:
    """The folder of the Go client's programs and tests and of the Go decoder of the join test, all freshly built."""
    command = ("clients/go/build.sh", "tests/clients/join")
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    return GO_BIN
