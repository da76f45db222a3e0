"""What the model itself thought of tokens: log-probabilities of chosen ones and of the likeliest, nothing bent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.fixed_point import log_total
from worker.engine.sequence import TokenLogprob

_ID_RANGE = 1 << 32
_ID_MASK = _ID_RANGE - 1


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token and what its row of logits says of it.

    Attributes:
        logprob: of the token under softmax(logits), before temperature and all that bends or filters.
        is_valid: False when the row offered no token; then the other fields mean nothing.
        top_logprobs: the likeliest tokens of the row, likeliest first, the lowest id of equals first.
    """

    token_id: int
    logprob: float
    is_valid: bool
    top_logprobs: tuple[TokenLogprob, ...] = ()


def score(
    logits: Tensor, shifted: Tensor, token_ids: Tensor, is_valid: Tensor, num_top: Sequence[int]
) -> list[ScoredToken]:
    """Bring the tokens and their logprobs to the host: one copy, and one more if any row wants alternatives.

    Args:
        logits: [B, V] float32.
        shifted: [B, V] float64, `shift(logits)`.
        token_ids: [B] int64.
        is_valid: [B] bool, handed on.
        num_top: how many alternatives each row wants.
    """
    log_totals = log_total(shifted)
    logprobs = shifted.gather(-1, token_ids[:, None]).squeeze(-1) - log_totals
    # ids are below 2**53, so one float64 tensor carries everything to the host in one copy
    table = torch.stack((token_ids.double(), logprobs, is_valid.double()), dim=-1).tolist()
    tops = _top_logprobs(logits, shifted, log_totals, num_top)
    return [
        ScoredToken(int(token_id), logprob, valid == 1, tops.get(row, ()))
        for row, (token_id, logprob, valid) in enumerate(table)
    ]


def _top_logprobs(
    logits: Tensor, shifted: Tensor, log_totals: Tensor, num_top: Sequence[int]
) -> dict[int, tuple[TokenLogprob, ...]]:
    """The alternatives of the rows that want any."""
    wanted = [row for row, count in enumerate(num_top) if count > 0]
    if not wanted:
        return {}
    rows = torch.tensor(wanted, device=logits.device)
    most = min(max(num_top), logits.shape[-1])
    ids = _ID_MASK - (_sort_keys(logits[rows]).topk(most, dim=-1).values & _ID_MASK)
    logprobs = shifted[rows].gather(-1, ids) - log_totals[rows, None]
    found = torch.stack((ids.double(), logprobs), dim=-1).tolist()
    return {
        row: tuple(TokenLogprob(int(token_id), logprob) for token_id, logprob in pairs[: num_top[row]])
        for row, pairs in zip(wanted, found, strict=True)
    }


def _sort_keys(logits: Tensor) -> Tensor:
    """[B, V] int64 keys, no two of a row equal: by logit, the lower id above. So any way to find the top agrees."""
    bits = (logits.float() + 0.0).view(torch.int32).long()  # + 0.0 makes of -0.0 the 0.0 that it equals
    ascending = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # floats order as sign and magnitude
    return ascending * _ID_RANGE + torch.arange(_ID_MASK, _ID_MASK - logits.shape[-1], -1, device=logits.device)
