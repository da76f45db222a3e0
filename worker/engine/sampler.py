"""The next token of every sequence: greedy and sampled rows in one call, each independent of the others.

A row's result must not depend on the batch it is in, to the bit, on any device. Floating-point sums do depend on it
(a kernel picks its order of summation by the number of rows), so all sums here are of int64 fixed-point numbers.

Order of the filters, as in transformers: temperature, then top-k (ties with the k-th are kept), then top-p
(Holtzman et al. 2020, arXiv:1904.09751: the smallest set of the likeliest tokens that holds the mass top_p).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.sequence import SamplingParams


@dataclass(frozen=True, slots=True)
class SampledToken:
    """One row's result.

    Attributes:
        logprob: of the token under softmax(logits), before temperature and filters.
        is_valid: False when the row had a NaN or +inf or no finite logit; then the other fields mean nothing.
    """

    token_id: int
    logprob: float
    is_valid: bool


def sample(logits: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> list[SampledToken]:
    """Choose the next token of every row; waits for the device once.

    Args:
        logits: [B, V] float32, last position of each sequence.
        params: B of them; temperature 0 takes the largest logit, the lowest id of equals.
        uniforms: B draws in [0, 1); the token is the first in vocabulary order whose cumulative probability
            exceeds the draw. Greedy rows ignore theirs.
    """
    largest = logits.amax(dim=-1, keepdim=True)
    is_valid = largest.isfinite()
    shifted = torch.where(is_valid, logits.double() - largest, 0.0)  # [B, V] float64, at most 0
    token_ids = shifted.argmax(dim=-1)
    drawn = [row for row, p in enumerate(params) if p.temperature > 0]
    if drawn:
        rows = torch.tensor(drawn, device=logits.device)
        knobs = [params[row] for row in drawn]
        token_ids[rows] = _draw(shifted[rows], knobs, [uniforms[row] for row in drawn])
    logprobs = _logprobs(shifted, token_ids)
    # ids are below 2**53, so one float64 tensor carries everything to the host in one copy
    table = torch.stack((token_ids.double(), logprobs, is_valid.squeeze(-1).double()), dim=-1)
    return [SampledToken(int(id_), logprob, valid == 1) for id_, logprob, valid in table.tolist()]


def fixed_point_weights(shifted: Tensor) -> Tensor:
    """exp(shifted) as int64 fixed point.

    Args:
        shifted: [B, V] float64, at most 0.

    Returns:
        [B, V] int64, 2**bits for 0; a row's sum stays below 2**62. At V = 32000 a token with less than 2**-47
        of the likeliest one's probability has weight 0.
    """
    return (shifted.exp() * 2.0 ** _bits(shifted.shape[-1])).long()


def keep_top(scaled: Tensor, weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The weights with those outside top-k, then outside top-p, set to 0; at least one token stays.

    Args:
        scaled: [B, V] float64, logits after temperature.
        weights: [B, V] int64, `fixed_point_weights(scaled)`.
        top_k: [B, 1] int64, from 1 to V.
        top_p: [B, 1] float64.
    """
    ascending, order = scaled.sort(dim=-1, stable=True)
    kth = ascending.gather(-1, scaled.shape[-1] - top_k)
    sorted_weights = weights.gather(-1, order).masked_fill(ascending < kth, 0)
    cumulative = sorted_weights.cumsum(dim=-1)
    cut = ((1 - top_p) * cumulative[:, -1:].double()).long()
    is_removed = cumulative <= cut
    is_removed[:, -1] = False
    return torch.zeros_like(weights).scatter(-1, order, sorted_weights.masked_fill(is_removed, 0))


def _draw(shifted: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> Tensor:
    """[R] int64 token ids of the sampled rows; `shifted` is [R, V]."""
    device, vocab_size = shifted.device, shifted.shape[-1]
    knobs = torch.tensor(
        [(p.temperature, p.top_p, uniform) for p, uniform in zip(params, uniforms, strict=True)],
        dtype=torch.float64,
        device=device,
    )
    temperature, top_p, uniform = knobs[:, 0:1], knobs[:, 1:2], knobs[:, 2:3]
    scaled = shifted / temperature
    weights = fixed_point_weights(scaled)
    filtered = [row for row, p in enumerate(params) if 0 < p.top_k < vocab_size or p.top_p < 1]
    if filtered:
        rows = torch.tensor(filtered, device=device)
        top_k = [min(params[row].top_k, vocab_size) or vocab_size for row in filtered]
        kept = keep_top(scaled[rows], weights[rows], torch.tensor(top_k, device=device)[:, None], top_p[rows])
        weights[rows] = kept
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1:]
    target = (uniform * total.double()).long().minimum(total - 1)  # the product may round up to the total
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def _logprobs(shifted: Tensor, token_ids: Tensor) -> Tensor:
    """[B] float64: log softmax of the chosen tokens."""
    total = fixed_point_weights(shifted).sum(dim=-1).double() * 2.0 ** -_bits(shifted.shape[-1])
    return shifted.gather(-1, token_ids[:, None]).squeeze(-1) - total.log()


def _bits(vocab_size: int) -> int:
    return 62 - vocab_size.bit_length()
