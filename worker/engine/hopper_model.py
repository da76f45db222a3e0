"""The Llama forward pass on a Hopper GPU, by the engine's own kernels: decode as CUDA graphs, prefill beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from worker.engine.batch import SequenceSlice
from worker.engine.config import ActivationFormat, LlamaConfig
from worker.engine.device_probe import probe_device
from worker.engine.hopper_decode import DecodeGraphs
from worker.engine.hopper_prefill import Prefill
from worker.engine.hopper_weights import HopperWeights
from worker.engine.kernels.attention import BLOCK_SIZE
from worker.engine.kernels.choose import MAX_VOCABULARY, Choices, TokenChooser, takes
from worker.engine.kv_tensors import KVCache
from worker.engine.model import rotary_tables
from worker.engine.sampler import SamplingRow

MAX_ROWS = 1024  # tokens chosen in one step


class HopperModel:
    """A quantized Llama in float16, with a KV cache in float16 or int8, on one GPU. The engine's `ForwardModel`.

    Args:
        fixed_rows: a decode step always runs as one of so many rows, at most 128, and slices of several tokens run one
            by one, so that a row's logits do not depend on what else is in the step. 0 is faster.
        prefill_activations: INT8, of int8 weights only, is faster and less exact.

    Made ready: kernels are compiled (or found on disk), graphs are captured. `progress` is called with the fraction
    done, rising. Raises KernelBuildError where a kernel cannot be compiled or loaded.
    """

    def __init__(
        self,
        config: LlamaConfig,
        weights: HopperWeights,
        kv: KVCache,
        progress: Callable[[float], None] = lambda _: None,
        fixed_rows: int = 0,
        prefill_activations: ActivationFormat = ActivationFormat.FLOAT,
    ) -> None:
        self._is_fixed = fixed_rows > 0
        if kv.block_size != BLOCK_SIZE:
            raise ValueError(f"the kernels take blocks of {BLOCK_SIZE} positions, not {kv.block_size}")
        self.config = config
        self.kernels = "hopper"
        self.weights = weights
        self.kv = kv
        self.block_size = kv.block_size
        self.num_blocks = kv.num_blocks
        self.max_context = min(config.max_position_embeddings, kv.num_blocks * kv.block_size)
        self.vocab_size = config.vocab_size
        self._device = weights.embedding.device
        with torch.inference_mode(), torch.cuda.device(self._device):
            cos, sin = rotary_tables(config, self.max_context, self._device)
            self._prefill = Prefill(config, weights, kv, cos, sin, prefill_activations)
            self._chooser = TokenChooser(self._device, MAX_ROWS)
            self._decode = DecodeGraphs(config, weights, kv, cos, sin, self._chooser.token_ids, progress, fixed_rows)

    def forward(self, slices: Sequence[SequenceSlice]) -> Tensor:
        """Run the slices, write their keys and values, and return the logits that are wanted.

        Returns:
            [sum of the slices' `num_logit_rows`, V] float32, in slice order, on the model's device.
        """
        return self._forward(slices).float()

    @torch.inference_mode()
    def queue(self, slices: Sequence[SequenceSlice], rows: Sequence[SamplingRow]) -> Choices | None:
        """See `AheadModel.queue`."""
        logits = self._forward(slices)
        if not rows:
            return None
        with torch.cuda.device(self._device):
            return self._chooser.choose(logits, rows)

    def chooses(self, row: SamplingRow) -> bool:
        """See `AheadModel.chooses`."""
        return takes(row) and self.vocab_size % 8 == 0 and self.vocab_size <= MAX_VOCABULARY

    @torch.inference_mode()
    def _forward(self, slices: Sequence[SequenceSlice]) -> Tensor:
        """As `forward`, in float16; the next call overwrites it."""
        single = [part for part in slices if len(part.token_ids) == 1]
        longer = [part for part in slices if len(part.token_ids) > 1]
        found = []
        with torch.cuda.device(self._device):
            at_once = self._decode.max_rows
            for first in range(0, len(single), at_once):
                logits = self._decode.run(single[first : first + at_once])
                found.append(logits if len(single) <= at_once else logits.clone())
            passes = [[each] for each in longer] if self._is_fixed else [longer] * bool(longer)
            for part in passes:
                logits = self._prefill.run(part)
                found.append(logits if len(passes) == 1 else logits.clone())
            logits = torch.cat(found) if len(found) > 1 else found[0]
            rows = wanted_rows(slices)
            if rows == list(range(len(logits))):
                return logits
            index = torch.tensor(rows, dtype=torch.int64).pin_memory()
            return logits[index.to(self._device, non_blocking=True)]

    def probe(self) -> None:
        """Compute something tiny on the device; see probe_device."""
        probe_device(self._device)


def wanted_rows(slices: Sequence[SequenceSlice]) -> list[int]:
    """Where the wanted logits are, in slice order, among those of all single tokens and then of the longer slices."""
    next_single, next_longer = 0, sum(len(part.token_ids) == 1 for part in slices)
    rows: list[int] = []
    for part in slices:
        if len(part.token_ids) == 1:
            rows += [next_single] * part.num_logit_rows
            next_single += 1
        else:
            rows += range(next_longer, next_longer + part.num_logit_rows)
            next_longer += part.num_logit_rows
    return rows
