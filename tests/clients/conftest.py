"""Clients in other languages, and the tools that watch over the protos."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

ROOT = Path(__file__).parents[2]
NODE_CLIENT = ROOT / "clients" / "node"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


class Herd(Protocol):
    """What these tests need to know of a running herd."""

    @property
    def address(self) -> str:
        """HOST:PORT of its gateway."""


@pytest.fixture(scope="session")
def gateway(herd_up: Herd) -> str:
    """HOST:PORT of a real gateway with a worker behind it."""
    return herd_up.address


@pytest.fixture(scope="session")
def run() -> Run:
    """Runs a command to its end, in the repository's root unless told otherwise; its output is text."""

    def run_command(*command: str | Path, cwd: Path = ROOT, stdin: bytes = b"") -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, timeout=300)
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    return run_command


@pytest.fixture(scope="session")
def node_client(run: Run) -> Path:
    """The folder of the Node client, with exactly the packages of its lock file."""
    installed = run("npm", "ci", "--silent", "--prefer-offline", "--no-audit", "--no-fund", cwd=NODE_CLIENT)
    assert installed.returncode == 0, installed.stderr
    return NODE_CLIENT
