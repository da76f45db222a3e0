"""A step that the device computes while the host reads the one before and prepares the one after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worker.engine.batch import AheadModel, PendingChoices
from worker.engine.generation import Branch, Generation
from worker.engine.logprobs import ScoredToken
from worker.engine.sequence import ScheduledSlice

Part = tuple[ScheduledSlice, Generation, Branch]


@dataclass(frozen=True, slots=True)
class Awaited:
    """A token that the step chooses: whose, and where the sequence will have it."""

    generation: Generation
    branch: Branch
    place: int


class Flight:
    """A step under way: its tokens, in the order of the rows that the model was given."""

    def __init__(self, awaited: Sequence[Awaited], choices: PendingChoices | None) -> None:
        self._awaited = awaited
        self._choices = choices

    def land(self) -> list[tuple[Awaited, ScoredToken]]:
        """Wait for the step, and say what it chose."""
        tokens = self._choices.wait() if self._choices else []
        return list(zip(self._awaited, tokens, strict=True))


def take_off(model: AheadModel, parts: Sequence[Part]) -> Flight | None:
    """Queue the step and advance its sequences, which get a token that is not known yet where they are complete.

    None, and nothing is changed, if a row's token can only be chosen on the host, or if the step cannot be queued: it
    has to be run by itself then, which also finds whose fault that is.
    """
    completing = [part for part in parts if part[0].completes]
    rows = [branch.sampling_row() for _, _, branch in completing]
    if any(slice_.sequence.wants_all_logits for slice_, _, _ in parts) or not all(map(model.chooses, rows)):
        return None
    try:
        choices = model.queue([slice_.to_batch() for slice_, _, _ in parts], rows)
    except torch.AcceleratorError:
        raise
    except Exception:
        return None
    for slice_, _, _ in parts:
        slice_.sequence.num_computed += slice_.num_tokens
    return Flight([_await(row, part) for row, part in enumerate(completing)], choices)


def _await(row: int, part: Part) -> Awaited:
    slice_, generation, branch = part
    sequence = slice_.sequence
    sequence.token_ids.append(-1 - row)
    sequence.is_full = branch.choice.num_tokens + sequence.num_unknown >= branch.request.stopping.max_new_tokens
    return Awaited(generation, branch, len(sequence.token_ids) - 1)
