"""Log-probabilities and alternatives: those of the unmodified distribution, in one order, row by row."""

from __future__ import annotations

import math

import pytest
import torch

from worker.engine.fixed_point import shift
from worker.engine.logprobs import ScoredToken, score


def score_rows(logits: torch.Tensor, token_ids: list[int], num_top: list[int]) -> list[ScoredToken]:
    """Score fixed tokens."""
    shifted, is_valid = shift(logits)
    return score(logits, shifted, torch.tensor(token_ids), is_valid, num_top)


def test_they_are_the_log_softmax() -> None:
    """Of the token and of the likeliest tokens, most likely first, as many as each row wants."""
    logits = torch.randn(4, 32000, generator=torch.Generator().manual_seed(1)) * 3
    logits[2] -= 100  # all negative
    num_top = [0, 1, 20, 5]
    expected = logits.double().log_softmax(-1)
    for row, scored in enumerate(score_rows(logits, [0, 31999, 7, 8], num_top)):
        assert scored.logprob == pytest.approx(float(expected[row, scored.token_id]), abs=1e-8)
        best = expected[row].topk(num_top[row]) if num_top[row] else None
        assert [top.token_id for top in scored.top_logprobs] == (best.indices.tolist() if best else [])
        for top in scored.top_logprobs:
            assert top.logprob == pytest.approx(float(expected[row, top.token_id]), abs=1e-8)


def test_of_equals_the_lowest_id_comes_first() -> None:
    """0.0 and -0.0 are equal; a request for fewer alternatives gets the first of them."""
    logits = torch.tensor([[-1.0, -0.0, 0.0, 2.0, -0.0, -math.inf, 2.0]])
    assert [top.token_id for top in score_rows(logits, [0], [5])[0].top_logprobs] == [3, 6, 1, 2, 4]
    assert [top.token_id for top in score_rows(logits, [0], [3])[0].top_logprobs] == [3, 6, 1]


def test_more_alternatives_than_tokens_are_all_tokens() -> None:
    """A small vocabulary; -inf is a probability of 0."""
    scored = score_rows(torch.tensor([[0.0, -math.inf]]), [0], [20])[0]
    assert [(top.token_id, top.logprob) for top in scored.top_logprobs] == [(0, 0.0), (1, -math.inf)]


def test_a_row_does_not_see_how_many_the_others_want() -> None:
    """Bit for bit, with ties everywhere."""
    logits = torch.randint(-3, 3, (8, 1000), generator=torch.Generator().manual_seed(2)).float()
    num_top = [20, 1, 0, 3, 20, 7, 0, 2]
    together = score_rows(logits, [5] * 8, num_top)
    assert together == [score_rows(logits[row : row + 1], [5], [num_top[row]])[0] for row in range(8)]
