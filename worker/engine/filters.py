"""Which tokens may be drawn: top-k, top-p, min-p and locally typical sets, as transformers' warpers keep them.

Each takes and returns [R, V] int64 weights, 0 for what an earlier filter removed; at least one token stays.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from worker.engine.fixed_point import fraction_bits


def keep_top(scaled: Tensor, weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The weights with those outside top-k, then outside top-p, set to 0.

    Ties with the k-th are kept. Of the rest stays the smallest set of the likeliest that holds the mass top_p.

    Args:
        scaled: [R, V] float64, shifted logits after temperature.
        weights: [R, V] int64, `fixed_point_weights(scaled)`.
        top_k: [R, 1] int64, from 1 to V.
        top_p: [R, 1] float64.

    Source: nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751.
    """
    ascending, order = scaled.sort(dim=-1, stable=True)
    kth = ascending.gather(-1, scaled.shape[-1] - top_k)
    sorted_weights = weights.gather(-1, order).masked_fill(ascending < kth, 0)
    cumulative = sorted_weights.cumsum(dim=-1)
    cut = ((1 - top_p) * cumulative[:, -1:].double()).long()
    is_removed = cumulative <= cut
    is_removed[:, -1] = False
    return torch.zeros_like(weights).scatter(-1, order, sorted_weights.masked_fill(is_removed, 0))


def keep_likely(scaled: Tensor, weights: Tensor, min_p: Tensor) -> Tensor:
    """The weights with those below min_p times the largest set to 0.

    Args:
        scaled: [R, V] float64, shifted logits after temperature; the largest is 0.
        weights: [R, V] int64.
        min_p: [R, 1] float64.

    Source: Nguyen et al. 2024, arXiv:2407.01082.
    """
    return weights.masked_fill(scaled.exp() < min_p, 0)


def keep_typical(scaled: Tensor, weights: Tensor, mass: Tensor) -> Tensor:
    """The weights with those outside the locally typical set set to 0.

    The set holds the tokens whose surprise is closest to the entropy of what is left, until they have the mass;
    ties with the last one are kept.

    Args:
        scaled: [R, V] float64, shifted logits after temperature.
        weights: [R, V] int64.
        mass: [R, 1] float64, over 0 and below 1.

    Source: Meister et al. 2022, arXiv:2202.00666.
    """
    vocab_size = scaled.shape[-1]
    is_kept = weights > 0
    total = weights.sum(dim=-1, keepdim=True).double()
    # The entropy and every surprise contain the same log of the total, so it drops out of their difference.
    terms = torch.where(is_kept, scaled.exp() * -scaled, 0.0)  # x * exp(-x) is at most 1/e
    mean = (terms * 2.0 ** fraction_bits(vocab_size)).long().sum(dim=-1, keepdim=True).double() / total
    distance = torch.where(is_kept, (-scaled - mean).abs(), math.inf)
    ascending, order = distance.sort(dim=-1, stable=True)
    cumulative = weights.gather(-1, order).cumsum(dim=-1).double()
    last = (cumulative < mass * total).sum(dim=-1, keepdim=True).clamp(max=vocab_size - 1)
    return weights.masked_fill(distance > ascending.gather(-1, last), 0)
