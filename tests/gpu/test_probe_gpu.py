"""The probe on a GPU: it finds nothing on a well one, and a lost one is told as an error, not as a sum."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from worker.engine.device_probe import probe_device

pytestmark = pytest.mark.gpu

LOSE_THE_DEVICE = """
import torch
from worker.engine.device_probe import probe_device

cuda = torch.device("cuda")
probe_device(cuda)
try:
    torch.zeros(1, device=cuda)[torch.tensor([7], device=cuda)].item()
except torch.AcceleratorError:
    print("lost", flush=True)
try:
    probe_device(cuda)
except torch.AcceleratorError:
    print("told", flush=True)  # what follows may abort the process
"""


def test_a_gpu_that_computes_is_well() -> None:
    """No error, and nothing is left behind."""
    probe_device(torch.device("cuda"))


def test_a_lost_gpu_is_told() -> None:
    """After an assertion on the device no call of the process succeeds any more; the engine process then ends."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", LOSE_THE_DEVICE], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == ["lost", "told"], done.stderr
