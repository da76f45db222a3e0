"""What each process loads: a supervisor stays small, and no worker ever loads grpc or transformers."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROBE = "import sys, {module}; print(' '.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("worker.__main__", {"torch", "numpy", "grpc", "transformers", "service"}),
        ("worker.serve, worker.load", {"grpc", "transformers", "service"}),
    ],
)
def test_a_process_loads_only_what_it_needs(module: str, unwanted: set[str]) -> None:
    """Start-up time and memory of a supervisor; a worker's traces never leave over gRPC."""
    code = PROBE.format(module=module)
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not unwanted & set(ended.stdout.split())
