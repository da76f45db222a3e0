"""What a Llama does to each token's numbers by themselves, between the products: norm, rotation, gate. In torch."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Rowwise(Protocol):
    """One way to compute them. What is returned goes into products and into the KV cache, which round it as they do."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """RMSNorm of [T, N] float32, contiguous, by [N] float32."""
        ...

    def rotate(self, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotary position embedding of [T, heads, D] by [T, D/2] float32 angles; dimension i turns with i + D/2.

        Source: Su et al. 2021, arXiv:2104.09864, in the layout of Hugging Face checkpoints.
        """
        ...

    def gate(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up of [T, 2 * N], gate first; [T, N]."""
        ...


class PlainRowwise:
    """In float32."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """As Rowwise has it."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight

    def rotate(self, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """As Rowwise has it."""
        first, second = heads.float().chunk(2, dim=-1)
        cos, sin = cos[:, None], sin[:, None]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def gate(self, gate_up: Tensor) -> Tensor:
        """As Rowwise has it. Written out: torch's own silu rounds the last values of a row differently on the CPU."""
        gate, up = gate_up.chunk(2, dim=1)
        gate = gate.float()
        return gate / (1 + torch.exp(-gate)) * up
