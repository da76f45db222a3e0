"""Asks a device to compute something tiny: whether it still does."""

from __future__ import annotations

import torch


def probe_device(device: torch.device) -> None:
    """Add two numbers there and wait for the sum; tens of microseconds.

    Raises RuntimeError for a wrong sum, and what torch raises for a lost device. Never returns if the device hangs.
    """
    found = torch.ones(2, device=device).sum().item()
    if found != 2.0:
        raise RuntimeError(f"device {device} says that 1 + 1 is {found}")
