"""One forward pass over scheduled slices, and what its logits say: next tokens, and logprobs of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from worker.engine.batch import ForwardModel
from worker.engine.fixed_point import shift
from worker.engine.generation import Branch
from worker.engine.logprobs import ScoredToken, score
from worker.engine.sampler import sample
from worker.engine.sequence import ScheduledSlice

_ROWS_AT_ONCE = 64  # a row takes V * 8 bytes several times over while it is scored


@dataclass(frozen=True, slots=True)
class SliceOutcome:
    """What a slice gave.

    Attributes:
        token: the next one; None where tokens are still to be prefilled.
        prompt: the prompt's tokens that stand after those of the slice, if all logits were wanted.
    """

    token: ScoredToken | None
    prompt: tuple[ScoredToken, ...] = ()

    @property
    def is_valid(self) -> bool:
        """Whether all its rows of logits were a distribution."""
        is_token_valid = self.token is None or self.token.is_valid
        return is_token_valid and (not self.prompt or all(each.is_valid for each in self.prompt))


def run_slices(model: ForwardModel, slices: Sequence[ScheduledSlice], branches: Sequence[Branch]) -> list[SliceOutcome]:
    """Forward, sample and score. Repeatable: changes no state but the KV cache's.

    Args:
        branches: that of each slice.

    Raises whatever the model raises, and ValueError if it gives too few or too many rows.
    """
    batch = [slice_.to_batch() for slice_ in slices]
    logits = model.forward(batch)
    ends = list(accumulate(each.num_logit_rows for each in batch))  # the row after each slice's last
    if len(logits) != ends[-1]:
        raise ValueError(f"the model gave {len(logits)} rows of logits, not {ends[-1]}")
    tokens = _sample_completing(logits, ends, slices, branches)
    prompts = {
        place: _score_prompt(logits[end - part.num_logit_rows : end], slices[place], branches[place])
        for place, (part, end) in enumerate(zip(batch, ends, strict=True))
        if part.wants_all_logits
    }
    return [SliceOutcome(tokens.get(place), prompts.get(place, ())) for place in range(len(slices))]


def _sample_completing(
    logits: Tensor, ends: Sequence[int], slices: Sequence[ScheduledSlice], branches: Sequence[Branch]
) -> dict[int, ScoredToken]:
    """The next token of every slice that completes its sequence, by the slice's place; from its last row."""
    completing = [place for place, slice_ in enumerate(slices) if slice_.completes]
    if len(completing) < len(logits):
        logits = logits[[ends[place] - 1 for place in completing]]
    sampled = sample(logits, [branches[place].sampling_row() for place in completing])
    return dict(zip(completing, sampled, strict=True))


def _score_prompt(logits: Tensor, slice_: ScheduledSlice, branch: Branch) -> tuple[ScoredToken, ...]:
    """Score the prompt's token after each of the slice's; `logits` has a row for each of the slice's."""
    request, start = branch.request, slice_.sequence.num_computed + 1
    following = torch.tensor(request.prompt_ids[start : start + slice_.num_tokens], device=logits.device)
    scored = []
    for first in range(0, len(following), _ROWS_AT_ONCE):
        token_ids = following[first : first + _ROWS_AT_ONCE]
        rows = logits[first : first + len(token_ids)]
        shifted, is_valid = shift(rows)
        scored += score(rows, shifted, token_ids, is_valid, [request.num_top_logprobs] * len(rows))
    return tuple(scored)
