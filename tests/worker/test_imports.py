"""What each process loads: a start is short, a supervisor stays small, no worker ever loads grpc or transformers."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROBE = "import sys, {module}; print(' '.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("worker.__main__", {"redis", "structlog", "opentelemetry", "torch"}),  # before the engine process starts
        ("worker.__main__, worker.supervise", {"torch", "numpy", "grpc", "transformers", "service"}),
        ("worker.run_engine, worker.load", {"grpc", "transformers", "service", "redis", "prometheus_client"}),
        ("worker.serve", {"torch", "grpc", "transformers", "service", "requests", "prometheus_client"}),
        ("herd.__main__, herd.up", {"redis", "structlog", "opentelemetry", "grpc", "rich"}),  # before the workers start
    ],
)
def test_a_process_loads_only_what_it_needs(module: str, unwanted: set[str]) -> None:
    """Start-up time, and memory of a supervisor; a worker's traces never leave over gRPC."""
    code = PROBE.format(module=module)
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not unwanted & set(ended.stdout.split())
