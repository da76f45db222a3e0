"""What one step asks of the model: slices of sequences, and the interface that runs them. No torch at run time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from worker.engine.logprobs import ScoredToken
    from worker.engine.sampler import SamplingRow


@dataclass(frozen=True, slots=True)
class SequenceSlice:
    """The part of one sequence that one step runs.

    Attributes:
        token_ids: the T >= 1 new tokens. Of an `AheadModel` a single one may be given as -1 - r: what the step queued
            last chose for its row r.
        start: how many positions of this sequence are already in the KV cache; the position of `token_ids[0]`.
        block_table: physical block of each logical block; covers at least `start` + T positions.
        wants_logits: the logits of the last token are wanted: after this slice the sequence is fully prefilled.
        wants_all_logits: those of every token of the slice are wanted, whatever `wants_logits` says.
    """

    token_ids: Sequence[int]
    start: int
    block_table: Sequence[int]
    wants_logits: bool
    wants_all_logits: bool = False

    @property
    def num_logit_rows(self) -> int:
        """Rows of logits that are wanted: of all tokens, of the last one, or none."""
        return len(self.token_ids) if self.wants_all_logits else int(self.wants_logits)


class ForwardModel(Protocol):
    """What the engine needs of a model; the tests' fake model implements it too."""

    @property
    def block_size(self) -> int:
        """Positions in one KV-cache block."""
        ...

    @property
    def num_blocks(self) -> int:
        """Physical blocks of the KV cache."""
        ...

    @property
    def max_context(self) -> int:
        """Positions a sequence may have, prompt and generated tokens together."""
        ...

    @property
    def vocab_size(self) -> int:
        """V: columns of the logits."""
        ...

    def probe(self) -> None:
        """Compute something tiny on the device and wait for it; raises if the device is lost."""
        ...

    def forward(self, slices: Sequence[SequenceSlice]) -> torch.Tensor:
        """Run the slices, write their keys and values, and return the logits that are wanted.

        Args:
            slices: at least one, and at most one of any sequence. Several may read a block that none writes; a
                block that a slice writes is in no other slice.

        Returns:
            [sum of the slices' `num_logit_rows`, V] float32, in slice order, on the model's device.
        """
        ...


class PendingChoices(Protocol):
    """Tokens that a device is choosing."""

    def wait(self) -> list[ScoredToken]:
        """One a row, once they are known."""
        ...


@runtime_checkable
class AheadModel(ForwardModel, Protocol):
    """A model that takes the next step before the host knows what the last one chose."""

    def chooses(self, row: SamplingRow) -> bool:
        """Whether `queue` takes such a row."""
        ...

    def queue(self, slices: Sequence[SequenceSlice], rows: Sequence[SamplingRow]) -> PendingChoices | None:
        """Queue a step behind those queued before, and the choice of a token from each row of its logits.

        Args:
            rows: one for each slice that wants logits, in their order; no slice wants all. Each `chooses`.

        Returns:
            The choices; None where there is no row.
        """
        ...
