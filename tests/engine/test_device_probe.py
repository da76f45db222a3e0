"""The probe of a device, on the CPU and where nothing is computed."""

import pytest
import torch

from worker.engine.device_probe import probe_device


def test_a_device_that_computes_is_well() -> None:
    """No error, and nothing left behind."""
    probe_device(torch.device("cpu"))


def test_a_device_that_computes_nothing_is_told() -> None:
    """The meta device has shapes and no numbers."""
    with pytest.raises((RuntimeError, NotImplementedError)):
        probe_device(torch.device("meta"))
