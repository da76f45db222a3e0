"""Logits as exact weights: int64 fixed-point probabilities, whose sums do not depend on how a device adds them."""

from __future__ import annotations

import torch
from torch import Tensor


def shift(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits as distances from the largest one.

    Args:
        logits: [B, V] float32.

    Returns:
        [B, V] float64, at most 0, and all 0 in a row that has no distribution; and [B] bool, which rows have one: no
        NaN, no +inf, and not only -inf.
    """
    largest = logits.amax(dim=-1, keepdim=True)
    is_valid = largest.isfinite()
    return torch.where(is_valid, logits.double() - largest, 0.0), is_valid.squeeze(-1)


def fixed_point_weights(shifted: Tensor) -> Tensor:
    """exp(shifted) as int64 fixed point.

    Args:
        shifted: [B, V] float64, at most 0.

    Returns:
        [B, V] int64, 2**bits for 0; a row's sum stays below 2**62. At V = 32000 a token with less than 2**-47
        of the likeliest one's probability has weight 0.
    """
    return (shifted.exp() * 2.0 ** fraction_bits(shifted.shape[-1])).long()


def log_total(shifted: Tensor) -> Tensor:
    """[B] float64: the logarithm of the sum of exp(shifted)."""
    vocab_size = shifted.shape[-1]
    return (fixed_point_weights(shifted).sum(dim=-1).double() * 2.0 ** -fraction_bits(vocab_size)).log()


def fraction_bits(vocab_size: int) -> int:
    """Bits after the point, so that `vocab_size` numbers of at most 1 sum to less than 2**62."""
    return 62 - vocab_size.bit_length()
