"""Which tokens may be drawn: the sets that transformers' own warpers keep, one by one and in its order."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest
import torch

from tests.engine.conftest import ProcessorsOf
from worker.engine.fixed_point import shift
from worker.engine.sampler import drawing_weights
from worker.engine.sequence import SamplingParams

PLAIN = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, seed=0)
VOCAB_SIZE = 1000


def fixed_scores(num_rows: int = 20) -> torch.Tensor:
    """[num_rows, VOCAB_SIZE] float32 with ties; from flat to sharp, and one row almost certain."""
    scores = torch.randn(num_rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(5))
    scores *= torch.linspace(0.2, 6, num_rows)[:, None]
    scores[:, 100:110] = scores[:, 110:120]
    scores[-1, 7] = 40.0
    return scores


def assert_keeps_as_transformers(processors_of: ProcessorsOf, params: SamplingParams) -> None:
    """The same sets, with float64 in transformers too."""
    scores = fixed_scores()
    processors = processors_of(
        1,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p or None,
        typical_p=params.typical_p,
    )
    expected = processors(torch.zeros(len(scores), 1, dtype=torch.int64), scores.double())
    shifted, _ = shift(scores)
    weights = drawing_weights(shifted, [params] * len(scores))
    # what the fixed point rounds to 0 is never drawn, whether a filter kept it or not
    drawable = shifted / params.temperature > -30
    assert torch.equal((weights > 0) & drawable, (expected > -math.inf) & drawable)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.9])
@pytest.mark.parametrize("top_k", [0, 1, 7, 5000])
@pytest.mark.parametrize("top_p", [0.0, 0.1, 0.5, 0.95, 1.0])
def test_top_k_and_top_p(processors_of: ProcessorsOf, temperature: float, top_k: int, top_p: float) -> None:
    """Temperature, then top-k, then top-p."""
    params = replace(PLAIN, temperature=temperature, top_k=top_k, top_p=top_p)
    assert_keeps_as_transformers(processors_of, params)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.9])
@pytest.mark.parametrize("min_p", [1e-9, 0.01, 0.2, 0.75, 1.0])
def test_min_p(processors_of: ProcessorsOf, temperature: float, min_p: float) -> None:
    """Relative to the likeliest token, after temperature."""
    assert_keeps_as_transformers(processors_of, replace(PLAIN, temperature=temperature, min_p=min_p))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.9])
@pytest.mark.parametrize("typical_p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_typical_p(processors_of: ProcessorsOf, temperature: float, typical_p: float) -> None:
    """The likeliest token may go."""
    assert_keeps_as_transformers(processors_of, replace(PLAIN, temperature=temperature, typical_p=typical_p))


def test_typical_p_can_remove_the_likeliest_token() -> None:
    """One token of one third and 500 that share the rest: their surprise is closer to the entropy."""
    logits = torch.zeros(1, 501)
    logits[0, 0] = math.log(250)
    kept = drawing_weights(shift(logits)[0], [replace(PLAIN, typical_p=0.3)]) > 0
    assert not kept[0, 0]
    assert kept[0, 1:].all()


def test_every_combination_in_transformers_order(processors_of: ProcessorsOf) -> None:
    """Each filter sees what the one before it left."""
    rng = random.Random(2)
    choices = itertools.product([0.6, 1.4], [0, 30], [0.7, 1.0], [0.0, 0.05], [0.4, 0.95, 1.0])
    for temperature, top_k, top_p, min_p, typical_p in rng.sample(sorted(choices), 40):
        params = SamplingParams(temperature, top_k, top_p, 0, min_p, typical_p)
        assert_keeps_as_transformers(processors_of, params)
