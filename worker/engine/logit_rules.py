"""What bends logits before a token is chosen: bias, penalties, and ends that come too early.

Order and formulas as transformers': the bias is added, then what stands in prompt or output is penalized for
repetition (Keskar et al. 2019, arXiv:1909.05858); then, as in OpenAI's API, what stands in the output by frequency and
presence; last, tokens that would end the choice before min_new_tokens get no probability. All in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.engine.sequence import GenerationRequest

_Ids: TypeAlias = NDArray[np.int64]
_Values: TypeAlias = NDArray[np.float32]

_FLOAT32 = torch.finfo(torch.float32)


class LogitRules:
    """What bends the logits of one choice: a function of request and tokens, so replaying them restores it.

    Invariant: `_ids[:_num_ids]` are distinct; `_counts` says how often each stands in the output. With a repetition
    penalty they are the ids of prompt and output, else of the output.
    """

    def __init__(self, request: GenerationRequest, vocab_size: int) -> None:
        """Args: vocab_size: V; ids beyond it cannot be drawn, so that no rule names them."""
        sampling, stopping = request.sampling, request.stopping
        self._min_new_tokens = stopping.min_new_tokens
        self._num_output = 0
        self._ending_ids = np.array(sorted(i for i in stopping.ending_ids if i < vocab_size), dtype=np.int64)
        self._bias_ids = np.array([token_id for token_id, _ in sampling.logit_bias], dtype=np.int64)
        self._bias_values = np.array([bias for _, bias in sampling.logit_bias], dtype=np.float32)
        repetition = max(sampling.repetition_penalty, _FLOAT32.tiny)
        self._penalties = np.array(
            [repetition, sampling.frequency_penalty, sampling.presence_penalty], dtype=np.float32
        )
        self._penalizes = self._penalties.tolist() != [1.0, 0.0, 0.0]
        self._always_bends = self._penalizes or self._bias_ids.size > 0
        prompt_ids = dict.fromkeys(request.prompt_ids) if self._penalties[0] != 1 else {}
        self._places = {token_id: place for place, token_id in enumerate(prompt_ids)}
        capacity = len(self._places) + (stopping.max_new_tokens if self._penalizes else 0)
        self._ids = np.zeros(capacity, dtype=np.int64)
        self._ids[: len(self._places)] = list(self._places)
        self._counts = np.zeros(capacity, dtype=np.float32)

    @property
    def is_active(self) -> bool:
        """Whether the next token's logits are bent."""
        return self._always_bends or (self._num_output < self._min_new_tokens and self._ending_ids.size > 0)

    @property
    def bias(self) -> tuple[_Ids, _Values]:
        """Distinct ids, and what is added to their logits."""
        return self._bias_ids, self._bias_values

    @property
    def seen(self) -> tuple[_Ids, _Values]:
        """Distinct ids that are penalized, and how often each stands in the output."""
        num_ids = len(self._places)
        return self._ids[:num_ids], self._counts[:num_ids]

    @property
    def penalties(self) -> _Values:
        """Repetition, frequency, presence."""
        return self._penalties

    @property
    def banned_ids(self) -> _Ids:
        """Distinct ids that cannot be drawn now."""
        return self._ending_ids[: None if self._num_output < self._min_new_tokens else 0]

    def push(self, token_id: int) -> None:
        """Count the next token of the output."""
        self._num_output += 1
        if self._penalizes:
            place = self._places.setdefault(token_id, len(self._places))
            self._ids[place] = token_id
            self._counts[place] += 1


def bend(logits: Tensor, rules: Sequence[LogitRules]) -> Tensor:
    """The logits as the rules want them, [R, V] float32, each row by its own; `logits` stays as it is."""
    bent = logits.clone()
    _add_bias(bent, rules)
    _penalize(bent, rules)
    _ban(bent, rules)
    return bent


def _add_bias(logits: Tensor, rules: Sequence[LogitRules]) -> None:
    ids, values = zip(*(each.bias for each in rules), strict=True)
    if places := _places(logits, ids):
        logits[places] += _column(logits, values)


def _penalize(logits: Tensor, rules: Sequence[LogitRules]) -> None:
    """A logit that would become infinite becomes the largest finite number."""
    ids, counts = zip(*(each.seen for each in rules), strict=True)
    if places := _places(logits, ids):
        penalties = [np.broadcast_to(each.penalties, (len(each.seen[0]), 3)) for each in rules]
        repetition, frequency, presence = _column(logits, penalties).unbind(dim=-1)
        num_times = _column(logits, counts)
        values = logits[places]
        values = torch.where(values < 0, values * repetition, values / repetition)
        values = values - frequency * num_times
        logits[places] = (values - presence * (num_times > 0)).clamp(max=_FLOAT32.max)


def _ban(logits: Tensor, rules: Sequence[LogitRules]) -> None:
    if places := _places(logits, [each.banned_ids for each in rules]):
        logits[places] = -math.inf


def _places(logits: Tensor, ids: Sequence[_Ids]) -> tuple[Tensor, Tensor] | None:
    """Row and column of every id, no place twice; None if there is none."""
    lengths = [len(each) for each in ids]
    if not sum(lengths):
        return None
    pairs = np.stack((np.repeat(np.arange(len(ids)), lengths), np.concatenate(ids)))
    rows, columns = torch.from_numpy(pairs).to(logits.device)
    return rows, columns


def _column(logits: Tensor, values: Sequence[_Values]) -> Tensor:
    """The rows' values one after the other, on the device of the logits."""
    return torch.from_numpy(np.concatenate(values)).to(logits.device)
