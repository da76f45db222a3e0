"""The sampler: transformers' filters, the right distribution, and rows that do not see each other."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch

from worker.engine.counter_rng import uniform
from worker.engine.sampler import fixed_point_weights, keep_top, sample
from worker.engine.sequence import SamplingParams

GREEDY = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, seed=0)


@pytest.fixture(scope="session")
def logits_process() -> ModuleType:
    """The module of transformers that holds its warpers (its import takes many seconds)."""
    from transformers.generation import logits_process as module

    assert isinstance(module, ModuleType)
    return module


def knobs(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> SamplingParams:
    """Sampling parameters; the seed is not read by the sampler."""
    return SamplingParams(temperature, top_k, top_p, seed=0)


def random_logits(num_rows: int, vocab_size: int, seed: int) -> torch.Tensor:
    """[num_rows, vocab_size] float32 in the range of a language model's."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, vocab_size, generator=generator) * 3


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.9])
@pytest.mark.parametrize("top_k", [0, 1, 7, 5000])
@pytest.mark.parametrize("top_p", [0.0, 0.1, 0.5, 0.95, 1.0])
def test_the_kept_sets_are_those_of_transformers(
    logits_process: ModuleType, temperature: float, top_k: int, top_p: float
) -> None:
    """Temperature, then top-k, then top-p, with transformers' own warpers in float64 on the same logits."""
    vocab_size = 1000
    scores = random_logits(20, vocab_size, seed=5).double()
    scores[:, 100:110] = scores[:, 110:120]  # ties
    expected = logits_process.TemperatureLogitsWarper(temperature)(None, scores)
    if top_k:
        expected = logits_process.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = logits_process.TopPLogitsWarper(top_p)(None, expected)
    scaled = (scores - scores.amax(-1, keepdim=True)) / temperature
    kept = keep_top(
        scaled,
        fixed_point_weights(scaled),
        torch.full((20, 1), min(top_k, vocab_size) or vocab_size),
        torch.full((20, 1), top_p, dtype=torch.float64),
    )
    assert torch.equal(kept > 0, expected > -math.inf)


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


def test_rows_do_not_depend_on_the_batch() -> None:
    """Bit for bit: each of 24 mixed rows alone, in the batch, and in the reversed batch."""
    logits = random_logits(24, 5003, seed=8)
    logits[5] = math.nan
    logits[6, 7:] = -math.inf
    settings = [GREEDY, knobs(), knobs(0.3, 5), knobs(1.5, 0, 0.8), knobs(1.0, 50, 0.9), knobs(2.0)]
    params = [settings[row % len(settings)] for row in range(24)]
    uniforms = [uniform(4, 0, row) for row in range(24)]
    together = sample(logits, params, uniforms)
    alone = [sample(logits[row : row + 1], [params[row]], [uniforms[row]])[0] for row in range(24)]
    backwards = sample(logits.flip(0), params[::-1], uniforms[::-1])[::-1]
    valid = [row for row in range(24) if row != 5]
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


def test_an_extreme_temperature_is_harmless() -> None:
    """Almost 0 is greedy, very large is uniform; nothing overflows."""
    logits = random_logits(1, 100, seed=1) * 1e4
    assert sample(logits, [knobs(1e-300)], [0.7])[0].token_id == int(logits.argmax())
    assert sample(logits, [knobs(1e300)], [0.705])[0].token_id == 70


def test_no_rows_give_no_tokens() -> None:
    """A step of prefill only."""
    assert sample(torch.empty(0, 100), [], []) == []


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "seed"),
    [(-0.1, 0, 1.0, 0), (math.nan, 0, 1.0, 0), (1.0, -1, 1.0, 0), (1.0, 0, 1.1, 0), (1.0, 0, 1.0, 2**64)],
)
def test_parameters_out_of_bounds_are_refused(temperature: float, top_k: int, top_p: float, seed: int) -> None:
    """Before they reach a batch."""
    with pytest.raises(ValueError, match="it must"):
        SamplingParams(temperature, top_k, top_p, seed)
