"""The next token of every sequence: greedy and sampled rows in one call, each independent of the others.

A row's result must not depend on the batch it is in, to the bit, on any device. Floating-point sums do depend on it
(a kernel picks its order of summation by the number of rows), so all sums here are of int64 fixed-point numbers.

Order, as in transformers: what bends logits (logit_rules), temperature, top-k, top-p, min-p, typical.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.filters import keep_likely, keep_top, keep_typical
from worker.engine.fixed_point import fixed_point_weights, shift
from worker.engine.logit_rules import LogitRules, bend
from worker.engine.logprobs import ScoredToken, score
from worker.engine.sequence import SamplingParams


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """How one row of logits becomes a token.

    Attributes:
        params: temperature 0 takes the largest logit, the lowest id of equals; no filter matters then.
        uniform: a draw in [0, 1); the token is the first in vocabulary order whose cumulative probability exceeds
            it. Not read when the temperature is 0.
        rules: what bends the logits first; None for nothing.
        num_top: alternatives to tell of, under the unmodified distribution.
    """

    params: SamplingParams
    uniform: float
    rules: LogitRules | None = None
    num_top: int = 0


def sample(logits: Tensor, rows: Sequence[SamplingRow]) -> list[ScoredToken]:
    """Choose the next token of every row.

    Args:
        logits: [B, V] float32, last position of each sequence.
        rows: B of them.
    """
    shifted, is_valid = shift(logits)
    bent, is_drawable = _bend(logits, shifted, is_valid, rows)
    token_ids = bent.argmax(dim=-1)
    if drawn := [row for row, each in enumerate(rows) if each.params.temperature > 0]:
        index = _index(drawn, logits)
        token_ids[index] = _draw(bent[index], [rows[row] for row in drawn])
    return score(logits, shifted, token_ids, is_drawable, [each.num_top for each in rows])


def drawing_weights(shifted: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """What the draw weighs each token with: its probability after temperature, 0 if a filter removed it.

    Args:
        shifted: [R, V] float64, at most 0.
        params: R of them, no temperature 0.

    Returns:
        [R, V] int64 fixed point.
    """
    scaled = shifted / _column([p.temperature for p in params], shifted)
    weights = fixed_point_weights(scaled)
    vocab_size = shifted.shape[-1]
    if chosen := [row for row, p in enumerate(params) if 0 < p.top_k < vocab_size or p.top_p < 1]:
        index = _index(chosen, shifted)
        top_k = _index([min(params[row].top_k, vocab_size) or vocab_size for row in chosen], shifted)
        top_p = _column([params[row].top_p for row in chosen], shifted)
        weights[index] = keep_top(scaled[index], weights[index], top_k[:, None], top_p)
    if chosen := [row for row, p in enumerate(params) if p.min_p > 0]:
        index, min_p = _index(chosen, shifted), _column([params[row].min_p for row in chosen], shifted)
        weights[index] = keep_likely(scaled[index], weights[index], min_p)
    if chosen := [row for row, p in enumerate(params) if p.typical_p < 1]:
        index, mass = _index(chosen, shifted), _column([params[row].typical_p for row in chosen], shifted)
        weights[index] = keep_typical(scaled[index], weights[index], mass)
    return weights


def _bend(logits: Tensor, shifted: Tensor, is_valid: Tensor, rows: Sequence[SamplingRow]) -> tuple[Tensor, Tensor]:
    """Shifted logits and validity after the rules; the arguments themselves where there are none."""
    rules = [(row, each.rules) for row, each in enumerate(rows) if each.rules is not None]
    if not rules:
        return shifted, is_valid
    index = _index([row for row, _ in rules], logits)
    bent, is_drawable = shift(bend(logits[index], [each for _, each in rules]))
    return shifted.index_copy(0, index, bent), is_valid.index_copy(0, index, is_drawable & is_valid[index])


def _draw(shifted: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """[R] int64 token ids of the sampled rows; `shifted` is [R, V]."""
    cumulative = drawing_weights(shifted, [row.params for row in rows]).cumsum(dim=-1)
    total = cumulative[:, -1:]
    uniform = _column([row.uniform for row in rows], shifted)
    target = (uniform * total.double()).long().minimum(total - 1)  # the product may round up to the total
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def _index(values: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=like.device)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """[R, 1] float64."""
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]
