"""Fixtures of these tests: a real server, a broker, a process to kill."""

import subprocess
from collections.abc import Iterator

import pytest

from tests.worker.servers import broker, redis_url, server

__all__ = ["broker", "redis_url", "server"]


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that sleeps, and that only we bury."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()
