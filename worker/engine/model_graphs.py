"""Decode steps of a LlamaModel as CUDA graphs: one new token of each sequence, a graph per batch and context size.

Kernel by kernel a step of 32 layers takes the host several times as long as the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from worker.engine.attention import QueryGroup, StepPlan
from worker.engine.batch import SequenceSlice
from worker.engine.cuda_graphs import StagedNumbers, recording
from worker.engine.kv_tensors import KVCache

BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
MIN_CONTEXT = 512  # of a graph


class StepGraphs:
    """The decode steps of one model, captured when this is made.

    A graph zeroes no fresh blocks, as an uncaptured step does: its attention reads no position that is not written.

    Args:
        run: queues a step's kernels and returns its logits [rows, V] float32, waiting for nothing.
        progress: called with the fraction captured, rising.
    """

    def __init__(
        self,
        run: Callable[[StepPlan], Tensor],
        kv: KVCache,
        max_context: int,
        vocab_size: int,
        device: torch.device,
        progress: Callable[[float], None],
    ) -> None:
        self._run = run
        self._block_size = kv.block_size
        self._contexts = context_sizes(max_context, kv.block_size)
        self._inputs = StagedNumbers(BATCH_SIZES[-1] * (3 + self._contexts[-1] // kv.block_size), device, torch.int64)
        self._rows = torch.arange(BATCH_SIZES[-1], device=device)
        self._logits = torch.zeros(BATCH_SIZES[-1], vocab_size, device=device)
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        with torch.inference_mode(), torch.cuda.device(device):
            self._capture(device, progress)

    def takes(self, slices: Sequence[SequenceSlice]) -> bool:
        """Whether a step of these slices is one of the captured."""
        return len(slices) <= BATCH_SIZES[-1] and all(len(s.token_ids) == s.num_logit_rows == 1 for s in slices)

    def run(self, slices: Sequence[SequenceSlice]) -> Tensor:
        """Run slices that are taken; returns [number of slices, V] float32."""
        context = next(size for size in self._contexts if size > max(part.start for part in slices))
        batch = next(size for size in BATCH_SIZES if size >= len(slices))
        with torch.cuda.device(self._rows.device):
            self._inputs.copy(step_numbers(slices, batch, context, self._block_size))
            self._graphs[batch, context].replay()
            return self._logits[: len(slices)].clone()

    def _capture(self, device: torch.device, progress: Callable[[float], None]) -> None:
        """Capture every graph; before, each batch size runs once, which compiles and loads its kernels."""
        steps = [(batch, context) for context in self._contexts for batch in BATCH_SIZES]
        empty = [SequenceSlice([0], 0, [0], True)]  # whose key and value the first sequence in that block overwrites
        with recording(device) as recorder:
            for done, (batch, context) in enumerate(steps):
                progress(done / len(steps))
                step = partial(self._queue, batch, context)
                if context == self._contexts[0]:
                    self._inputs.copy(step_numbers(empty, batch, context, self._block_size))
                    recorder.warm_up(step)
                self._graphs[batch, context], _ = recorder.capture(step)

    def _queue(self, batch: int, context: int) -> Tensor:
        """Every kernel of a step; its logits go where all graphs' go."""
        numbers, rows = self._inputs.on_device, self._rows[:batch]
        token_ids, positions, slots = (numbers[part * batch : (part + 1) * batch] for part in range(3))
        width = context // self._block_size
        tables = numbers[3 * batch : (3 + width) * batch].view(batch, width)
        plan = StepPlan(
            token_ids=token_ids,
            positions=positions,
            slots=slots,
            fresh_blocks=rows[:0],
            logit_rows=rows,
            groups=(QueryGroup(rows, positions, tables, context),),
        )
        return self._logits[:batch].copy_(self._run(plan))


def context_sizes(max_context: int, block_size: int) -> tuple[int, ...]:
    """Bounds on the positions of a step's sequences, in whole blocks: each twice the one before, the last enough."""
    sizes = [-(-MIN_CONTEXT // block_size) * block_size]
    while sizes[-1] < max_context:
        sizes.append(2 * sizes[-1])
    return tuple(sizes)


def step_numbers(slices: Sequence[SequenceSlice], batch: int, context: int, block_size: int) -> list[int]:
    """Token ids, positions and slots [batch] each, block tables [batch, context / block_size].

    Rows past the slices are the first slice again: they write what it writes, where it writes it.
    """
    padded = [*slices, *([slices[0]] * (batch - len(slices)))]
    numbers = [part.token_ids[0] for part in padded]
    numbers += [part.start for part in padded]
    numbers += [part.block_table[part.start // block_size] * block_size + part.start % block_size for part in padded]
    for row in _tables(padded, context // block_size, block_size):
        numbers += row
    return numbers


def _tables(slices: Sequence[SequenceSlice], width: int, block_size: int) -> Iterator[list[int]]:
    """The blocks of each slice up to its token's, and then its first one."""
    for part in slices:
        blocks = list(part.block_table[: part.start // block_size + 1])
        yield blocks + blocks[:1] * (width - len(blocks))
