"""The Triton kernels compute what bitsandbytes and the CPU path say, interpreted on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import triton

from tests.engine.triton_checks import CHECKS

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    triton.__version__.startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
    reason="Triton 3.6 interprets no loop over a range of tensors on NumPy 2.4; 3.7 does",
)


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    """Of every check."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.triton_checks"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", list(CHECKS))
def test_a_kernel_computes_what_it_should(name: str, errors: dict[str, float]) -> None:
    """Up to the rounding of float16; what nobody wrote is NaN before, and shows if it is read."""
    bound, _ = CHECKS[name]
    assert errors[name] <= bound
