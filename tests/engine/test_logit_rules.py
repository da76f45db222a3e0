"""Bias, penalties and early ends on fixed logits: transformers' own results, bit for bit."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.engine.conftest import ProcessorsOf
from worker.engine.logit_rules import LogitRules, bend
from worker.engine.sequence import GenerationRequest, SamplingParams, StoppingParams

VOCAB_SIZE = 200
EOS_IDS = (2, 5)
STOP_IDS = (9, 10)
PROMPT = (1, 17, 17, 3, 44, 150)
OUTPUT = (44, 8, 8, 8, 17, 199)
NONE = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, seed=0)
BIAS = ((0, 4.5), (17, -100.0), (44, 100.0), (199, -0.3))


def fixed_logits(num_rows: int = 1) -> torch.Tensor:
    """[num_rows, VOCAB_SIZE] float32, of both signs."""
    return torch.randn(num_rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(3)) * 4


def rules_for(
    sampling: SamplingParams, output: tuple[int, ...] = OUTPUT, *, ignore_eos: bool = False, min_new_tokens: int = 0
) -> LogitRules:
    """The rules of a choice that has drawn `output`."""
    stopping = StoppingParams(50, (), EOS_IDS, ignore_eos, STOP_IDS, min_new_tokens)
    rules = LogitRules(GenerationRequest("g", PROMPT, sampling, stopping), VOCAB_SIZE)
    for token_id in output:
        rules.push(token_id)
    return rules


def by_counts(sampling: SamplingParams, logits: torch.Tensor) -> torch.Tensor:
    """Frequency and presence penalty as OpenAI's API documents them, of OUTPUT alone."""
    counts = torch.bincount(torch.tensor(OUTPUT), minlength=VOCAB_SIZE)
    return logits - sampling.frequency_penalty * counts - sampling.presence_penalty * (counts > 0).float()


@pytest.mark.parametrize("penalty", [0.01, 0.8, 1.3, 100.0])
def test_repetition_penalty(processors_of: ProcessorsOf, penalty: float) -> None:
    """Of prompt and output, once for each token however often it stands there."""
    processors = processors_of(len(PROMPT), repetition_penalty=penalty)
    logits = fixed_logits()
    expected = processors(torch.tensor([PROMPT + OUTPUT]), logits)
    assert torch.equal(bend(logits, [rules_for(replace(NONE, repetition_penalty=penalty))]), expected)


def test_logit_bias(processors_of: ProcessorsOf) -> None:
    """Added before all else."""
    processors = processors_of(len(PROMPT), sequence_bias=[[[token_id], bias] for token_id, bias in BIAS])
    logits = fixed_logits()
    expected = processors(torch.tensor([PROMPT + OUTPUT]), logits)
    assert torch.equal(bend(logits, [rules_for(replace(NONE, logit_bias=BIAS))]), expected)


@pytest.mark.parametrize(("frequency", "presence"), [(0.7, 0.0), (0.0, 1.1), (-100.0, 100.0), (0.4, -0.6)])
def test_frequency_and_presence_penalty(frequency: float, presence: float) -> None:
    """Of the output alone: by how often, and by whether a token stands there."""
    sampling = replace(NONE, frequency_penalty=frequency, presence_penalty=presence)
    logits = fixed_logits()
    assert torch.equal(bend(logits, [rules_for(sampling)]), by_counts(sampling, logits))


@pytest.mark.parametrize("num_output", [0, 1, 2, 3, 4])
def test_min_new_tokens(processors_of: ProcessorsOf, num_output: int) -> None:
    """EOS and stop tokens have no probability until three tokens are there."""
    processors = processors_of(len(PROMPT), EOS_IDS + STOP_IDS, min_new_tokens=3)
    logits = fixed_logits()
    expected = processors(torch.tensor([PROMPT + OUTPUT[:num_output]]), logits)
    rules = rules_for(NONE, OUTPUT[:num_output], min_new_tokens=3)
    assert torch.equal(bend(logits, [rules]), expected)
    assert rules.is_active == (num_output < 3)


def test_ignored_eos_may_come_at_any_time() -> None:
    """It ends nothing then; stop tokens still wait."""
    bent = bend(fixed_logits(), [rules_for(NONE, (), ignore_eos=True, min_new_tokens=3)])
    assert (bent == -math.inf).nonzero()[:, 1].tolist() == list(STOP_IDS)


def test_all_of_them_in_transformers_order(processors_of: ProcessorsOf) -> None:
    """Bias, repetition, then the penalties that transformers lacks, then early ends."""
    sampling = replace(
        NONE, repetition_penalty=1.7, frequency_penalty=0.3, presence_penalty=-0.9, logit_bias=(*BIAS, (2, 50.0))
    )
    bias = [[[token_id], value] for token_id, value in sampling.logit_bias]
    logits = fixed_logits()
    tokens = torch.tensor([PROMPT + OUTPUT])
    expected = processors_of(len(PROMPT), sequence_bias=bias, repetition_penalty=1.7)(tokens, logits)
    expected = by_counts(sampling, expected)
    expected = processors_of(len(PROMPT), EOS_IDS + STOP_IDS, min_new_tokens=10)(tokens, expected)
    assert torch.equal(bend(logits, [rules_for(sampling, min_new_tokens=10)]), expected)


def test_each_row_by_its_own_rules() -> None:
    """Together and alone are the same bits, and the argument is not changed."""
    logits = fixed_logits(5)
    before = logits.clone()
    rules = [
        rules_for(replace(NONE, repetition_penalty=1.2)),
        rules_for(replace(NONE, logit_bias=BIAS)),
        rules_for(NONE, (), min_new_tokens=1),
        rules_for(replace(NONE, presence_penalty=2.0), ()),
        rules_for(replace(NONE, repetition_penalty=0.5, frequency_penalty=3.0, logit_bias=BIAS), (6, 6)),
    ]
    together = bend(logits, rules)
    assert torch.equal(together, torch.cat([bend(logits[row : row + 1], [rules[row]]) for row in range(5)]))
    assert torch.equal(logits, before)


def test_no_penalty_makes_a_logit_infinite() -> None:
    """A row that fails would be the knob's doing, not the model's."""
    logits = torch.full((1, VOCAB_SIZE), 1e38)
    assert bend(logits, [rules_for(replace(NONE, repetition_penalty=1e-45))]).isfinite().all()


def test_a_choice_without_knobs_has_no_rules() -> None:
    """Nothing is to be bent."""
    assert not rules_for(NONE).is_active
    assert not rules_for(NONE, (), ignore_eos=True).is_active


def test_ids_beyond_the_vocabulary_cannot_be_drawn_and_need_no_ban() -> None:
    """A configuration may name an EOS that the model has no logit for."""
    stopping = StoppingParams(50, (), (VOCAB_SIZE, 2), min_new_tokens=1)
    rules = LogitRules(GenerationRequest("g", PROMPT, NONE, stopping), VOCAB_SIZE)
    assert rules.banned_ids.tolist() == [2]
