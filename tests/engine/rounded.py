"""Activations in int8 as round_rows.cu makes them, and products of them, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from worker.engine.linear import Linear, ResidentBudget, TiledLinear, make_linear
from worker.engine.operators import PLAIN, Operators
from worker.engine.weights import Int8Weight, LinearWeight

# Of each 16 inputs, which one's code stands where: as packed weights have them (test_kernels_layout.py).
ORDER = [2 * t + 8 * half + neighbour for t in range(4) for half in range(2) for neighbour in range(2)]


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """[M, K] fp16 to codes [M, K] int8, inputs in their own order, and scales [M] float32."""
    absmax = x.float().abs().amax(1)
    steps = torch.full_like(absmax, 127)  # torch divides by a number, or a number, by way of its reciprocal
    factor = torch.where(absmax > 0, steps / absmax, 0.0)
    return (x.float() * factor[:, None]).round().to(torch.int8), absmax / steps


def ordered(codes: Tensor) -> Tensor:
    """[M, K] codes in the order in which they meet packed weights."""
    return codes.view(codes.shape[0], -1, 16)[:, :, ORDER].flatten(1)


class RoundedLinear:
    """CPU: float32 products of rounded activations, which are fp16 first, as on the GPU."""

    def __init__(self, weight: Int8Weight) -> None:
        self._linear = TiledLinear(weight, keep=True)

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply [T, K] into [T, N] float32."""
        codes, scale = rounded(x.half())
        return self._linear(codes.float() * scale[:, None])


def _make_rounded(weight: LinearWeight, resident: ResidentBudget) -> Linear:
    return RoundedLinear(weight) if isinstance(weight, Int8Weight) else make_linear(weight, resident)


ROUNDED = Operators("torch", _make_rounded, PLAIN.make_attention)
