"""transformers' `generate` with the knobs of a request, drawing with our random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from worker.engine.counter_rng import uniform
from worker.engine.sequence import GenerationRequest, SamplingParams


class CountPenalties:
    """Frequency and presence penalty, which transformers lacks, as a logits processor of its user."""

    def __init__(self, sampling: SamplingParams, prompt_len: int) -> None:
        self._sampling = sampling
        self._prompt_len = prompt_len

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Of the output alone."""
        counts = torch.zeros_like(scores)
        output = input_ids[:, self._prompt_len :]
        counts.scatter_add_(1, output, torch.ones_like(output, dtype=scores.dtype))
        scores = scores - self._sampling.frequency_penalty * counts
        return scores - self._sampling.presence_penalty * (counts > 0)


def generate(theirs: Any, request: GenerationRequest, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What transformers makes of the request: the ids of each choice, up to and with what ends it by an id.

    Its own distribution decides what our random numbers hit. A greedy request gives one choice.
    """
    sampling, stopping = request.sampling, request.stopping
    step = 0

    def draw(probabilities: torch.Tensor, num_samples: int) -> torch.Tensor:
        nonlocal step
        assert num_samples == 1
        draws = torch.tensor([[uniform(sampling.seed, row, step)] for row in range(len(probabilities))])
        step += 1
        cumulative = probabilities.double().cumsum(-1)
        return torch.searchsorted(cumulative, draws.double() * cumulative[:, -1:], right=True)

    knobs: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        monkeypatch.setattr(torch, "multinomial", draw)
        knobs = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p or None,
            "typical_p": sampling.typical_p,
        }
    if sampling.logit_bias:
        knobs["sequence_bias"] = [[[token_id], bias] for token_id, bias in sampling.logit_bias]
    ends = sorted(stopping.ending_ids)
    batch = torch.tensor([request.prompt_ids])
    found = theirs.generate(
        batch,
        attention_mask=torch.ones_like(batch),
        max_new_tokens=stopping.max_new_tokens,
        min_new_tokens=stopping.min_new_tokens or None,
        eos_token_id=ends or None,
        num_return_sequences=request.num_choices if sampling.temperature > 0 else 1,
        repetition_penalty=sampling.repetition_penalty,
        logits_processor=[CountPenalties(sampling, batch.shape[1])],
        **knobs,
    )
    return [_up_to_end(row, ends) for row in found[:, batch.shape[1] :].tolist()]


def _up_to_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    length = next((place + 1 for place, token_id in enumerate(ids) if token_id in ends), len(ids))
    return ids[:length]
