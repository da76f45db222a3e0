"""The sampler: transformers' filters, the right distribution, and rows that do not see each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from worker.engine.counter_rng import uniform
from worker.engine.logit_rules import LogitRules
from worker.engine.logprobs import ScoredToken
from worker.engine.sampler import SamplingRow
from worker.engine.sampler import sample as sample_rows
from worker.engine.sequence import GenerationRequest, SamplingParams, StoppingParams

GREEDY = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, seed=0)


def knobs(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> SamplingParams:
    """Sampling parameters; the seed is not read by the sampler."""
    return SamplingParams(temperature, top_k, top_p, seed=0)


def sample(logits: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> list[ScoredToken]:
    """Rows without rules and alternatives."""
    return sample_rows(logits, [SamplingRow(*row) for row in zip(params, uniforms, strict=True)])


def random_logits(num_rows: int, vocab_size: int, seed: int) -> torch.Tensor:
    """[num_rows, vocab_size] float32 in the range of a language model's."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, vocab_size, generator=generator) * 3


def test_samples_follow_the_filtered_distribution(logits_process: ModuleType) -> None:
    """20,000 draws of the counter RNG against transformers' filtered softmax: chi-square below its 99.9 % quantile."""
    logits = random_logits(1, 40, seed=11)
    params = knobs(temperature=1.3, top_k=20, top_p=0.9)
    scores = logits_process.TemperatureLogitsWarper(1.3)(None, logits.double())
    scores = logits_process.TopKLogitsWarper(20)(None, scores)
    probabilities = logits_process.TopPLogitsWarper(0.9)(None, scores).softmax(-1)[0]
    num_draws = 20_000
    uniforms = [uniform(99, 0, index) for index in range(num_draws)]
    tokens = sample(logits.expand(num_draws, -1), [params] * num_draws, uniforms)
    counts = torch.bincount(torch.tensor([token.token_id for token in tokens]), minlength=40).double()
    kept = probabilities > 0
    assert counts[~kept].sum() == 0
    expected = probabilities[kept] * num_draws
    assert expected.min() > 5
    chi_square = float(((counts[kept] - expected) ** 2 / expected).sum())
    degrees = int(kept.sum()) - 1
    # Wilson and Hilferty's approximation of the 99.9 % quantile
    quantile = degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3
    assert chi_square < quantile


def test_the_draw_inverts_the_cumulative_distribution_in_vocabulary_order() -> None:
    """Probabilities 1/2, 0, 1/4, 1/4: the borders are where the sums are, and a zero is never drawn."""
    logits = torch.tensor([[2.0, 0.0, 1.0, 1.0]]).log2() * math.log(2)
    draws = [0.0, 0.4999, 0.5001, 0.7499, 0.7501, 1 - 2**-53]
    tokens = sample(logits.expand(len(draws), -1), [knobs()] * len(draws), draws)
    assert [token.token_id for token in tokens] == [0, 0, 2, 2, 3, 3]


def test_a_token_without_probability_is_not_drawn_by_the_smallest_draw() -> None:
    """A draw of exactly 0 takes the first token that has any probability."""
    logits = torch.tensor([[-math.inf, -math.inf, 0.0, 0.0]])
    assert sample(logits, [knobs()], [0.0])[0].token_id == 2


def test_top_p_on_the_border_keeps_the_smaller_set(logits_process: ModuleType) -> None:
    """Two of four equal tokens hold exactly one half: that is enough, as in transformers."""
    logits = torch.zeros(1, 4)
    expected = logits_process.TopPLogitsWarper(0.5)(None, logits) > -math.inf
    tokens = sample(logits.expand(4, -1), [knobs(top_p=0.5)] * 4, [0.0, 0.4, 0.6, 0.99])
    assert {token.token_id for token in tokens} == set(expected[0].nonzero().flatten().tolist()) == {2, 3}


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    """A tie has one answer."""
    logits = torch.tensor([[0.0, 5.0, 5.0, 1.0], [7.0, 7.0, 7.0, 7.0]])
    assert [token.token_id for token in sample(logits, [GREEDY, GREEDY], [0.0, 0.0])] == [1, 0]


def test_logprob_is_of_the_unmodified_distribution() -> None:
    """Whatever temperature and filters did to the choice."""
    logits = random_logits(3, 32000, seed=2)
    params = [GREEDY, knobs(temperature=0.5, top_k=10), knobs(top_p=0.3)]
    tokens = sample(logits, params, [0.0, 0.3, 0.9])
    expected = logits.double().log_softmax(-1)
    for row, token in enumerate(tokens):
        assert token.logprob == pytest.approx(float(expected[row, token.token_id]), abs=1e-8)


EXTREMES = [
    GREEDY,
    knobs(),
    knobs(0.3, 5),
    knobs(1.5, 0, 0.8),
    knobs(1.0, 50, 0.9),
    knobs(2.0),
    replace(knobs(), min_p=1.0),
    replace(knobs(1e-9), min_p=0.2, typical_p=1e-6),
    replace(knobs(90.0), typical_p=0.999999),
    replace(knobs(0.8, 40, 0.95), min_p=0.02, typical_p=0.9),
    replace(knobs(), repetition_penalty=100.0),
    replace(GREEDY, repetition_penalty=1e-40),
    replace(knobs(), frequency_penalty=-100.0, presence_penalty=100.0),
    replace(GREEDY, logit_bias=tuple((token_id, 100.0) for token_id in range(0, 1000, 7))),
    replace(knobs(), repetition_penalty=1.3, presence_penalty=0.5, logit_bias=((3, -100.0),), typical_p=0.5),
]


def test_rows_do_not_depend_on_the_batch() -> None:
    """Bit for bit, with extreme knobs: each of 45 mixed rows alone, in the batch, and in the reversed batch.

    Among them rows of NaN, of infinities, of ties, and of numbers at the end of float32.
    """
    num_rows = 45
    logits = random_logits(num_rows, 5003, seed=8)
    logits[5] = math.nan
    logits[6, 7:] = -math.inf
    logits[9] = 0.0
    logits[11] *= 1e37
    logits[20, 3] = math.inf
    rows = []
    for row in range(num_rows):
        params = EXTREMES[row % len(EXTREMES)]
        stopping = StoppingParams(100, (), (4,), False, (5, 6), min_new_tokens=row % 3)
        rules = LogitRules(GenerationRequest("g", tuple(range(row, 3 * row + 1)), params, stopping), 5003)
        for token_id in (3, 17, 3, row):
            rules.push(token_id)
        rows.append(SamplingRow(params, uniform(4, 0, row), rules if rules.is_active else None, row % 21))
    together = sample_rows(logits, rows)
    alone = [sample_rows(logits[row : row + 1], [rows[row]])[0] for row in range(num_rows)]
    backwards = sample_rows(logits.flip(0), rows[::-1])[::-1]
    valid = [row for row in range(num_rows) if row not in (5, 20)]
    assert all(together[row].is_valid for row in valid)
    assert [together[row] for row in valid] == [alone[row] for row in valid]
    assert [together[row] for row in valid] == [backwards[row] for row in valid]


def test_rows_without_a_distribution_are_marked_invalid() -> None:
    """NaN, +inf, or nothing finite; a few -inf are a mask, and fine."""
    logits = torch.zeros(5, 6)
    logits[1, 3] = math.nan
    logits[2, 3] = math.inf
    logits[3, :] = -math.inf
    logits[4, 1:] = -math.inf
    for params in (GREEDY, knobs(), knobs(0.5, 2, 0.5)):
        tokens = sample(logits, [params] * 5, [0.999] * 5)
        assert [token.is_valid for token in tokens] == [True, False, False, False, True]
        assert (tokens[4].token_id, tokens[4].logprob) == (0, 0.0)


def test_a_row_whose_rules_leave_no_token_is_marked_invalid() -> None:
    """Every token would end the choice too early; the row beside it is not touched."""
    stopping = StoppingParams(9, (), (), False, (0, 1, 2), min_new_tokens=1)
    rules = LogitRules(GenerationRequest("g", (0,), knobs(), stopping), 3)
    rows = [SamplingRow(params, 0.5, rules) for params in (GREEDY, knobs())]
    tokens = sample_rows(torch.zeros(3, 3), [*rows, SamplingRow(knobs(), 0.5)])
    assert [token.is_valid for token in tokens] == [False, False, True]


def test_an_extreme_temperature_is_harmless() -> None:
    """Almost 0 is greedy, very large is uniform; nothing overflows."""
    logits = random_logits(1, 100, seed=1) * 1e4
    assert sample(logits, [knobs(1e-300)], [0.7])[0].token_id == int(logits.argmax())
    assert sample(logits, [knobs(1e300)], [0.705])[0].token_id == 70


def test_no_rows_give_no_tokens() -> None:
    """A step of prefill only."""
    assert sample(torch.empty(0, 100), [], []) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": 1.1},
        {"seed": 2**64},
        {"min_p": -0.1},
        {"min_p": math.nan},
        {"typical_p": 0.0},
        {"typical_p": 1.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": 101.0},
        {"frequency_penalty": -101.0},
        {"presence_penalty": math.inf},
        {"logit_bias": ((1, 101.0),)},
        {"logit_bias": ((1, 1.0), (1, 2.0))},
        {"logit_bias": tuple((token_id, 1.0) for token_id in range(1025))},
    ],
)
def test_parameters_out_of_bounds_are_refused(changes: dict[str, Any]) -> None:
    """Before they reach a batch."""
    with pytest.raises(ValueError, match="it must"):
        replace(knobs(), **changes)
