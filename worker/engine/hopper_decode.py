"""Decode steps on a Hopper GPU: one new token of each sequence, a CUDA graph per batch size and context size.

A row's logits do not depend on the other rows as long as the batch stays within one of the products' tile sizes
(kernels/gemm.py); the attention is independent of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from worker.engine.batch import SequenceSlice
from worker.engine.config import LlamaConfig
from worker.engine.cuda_graphs import StagedNumbers, recording
from worker.engine.hopper_weights import HopperWeights
from worker.engine.kernels.attention import BLOCK_SIZE, SPLIT, DecodeAttention
from worker.engine.kernels.rowwise import add_rms_norm, embed
from worker.engine.kv_tensors import KVCache

BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
MAX_BATCH = BATCH_SIZES[-1]


@dataclass(frozen=True, slots=True)
class _Buffers:
    """What the kernels of a step leave for each other; each [MAX_BATCH, its width]."""

    residual: Tensor
    x: Tensor
    qkv: Tensor
    mixed: Tensor
    delta: Tensor
    inner: Tensor
    logits: Tensor


class DecodeGraphs:
    """The decode steps of one model, captured when it is made.

    Args:
        cos, sin: [positions, 64] float32, the rotary tables; as many positions as a sequence may have.
        fixed_rows: every step runs with room for as many rows, or the batch size above; 0 for as few as there are.
        chosen: int32, tokens that a slice may name by number instead of by value (rowwise.embed).
        progress: called with the fraction captured, rising.

    Raises KernelBuildError where the kernels cannot be compiled or loaded.
    """

    def __init__(
        self,
        config: LlamaConfig,
        weights: HopperWeights,
        kv: KVCache,
        cos: Tensor,
        sin: Tensor,
        chosen: Tensor,
        progress: Callable[[float], None],
        fixed_rows: int = 0,
    ) -> None:
        if fixed_rows > MAX_BATCH:
            raise ValueError(f"a decode step has at most {MAX_BATCH} rows, not {fixed_rows}")
        self._batch_sizes = [size for size in BATCH_SIZES if size >= fixed_rows][: 1 if fixed_rows else None]
        self._eps = config.rms_norm_eps
        self._chosen = chosen
        self._weights = weights
        self._kv = kv
        device = weights.embedding.device
        self._context_sizes = context_sizes(cos.shape[0])
        self._attention = DecodeAttention(
            config.num_heads, config.num_kv_heads, MAX_BATCH, self._context_sizes[-1], cos, sin
        )
        self._inputs = StagedNumbers(MAX_BATCH * (2 + self._context_sizes[-1] // BLOCK_SIZE), device)
        self._buffers = _make_buffers(config, weights, device)
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._capture(device, progress)

    def run(self, slices: Sequence[SequenceSlice]) -> Tensor:
        """Run up to `max_rows` slices of one token each.

        Returns:
            [number of slices, V] float16, overwritten by the next call.
        """
        context = next(size for size in self._context_sizes if size > max(part.start for part in slices))
        batch = next(size for size in self._batch_sizes if size >= len(slices))
        self._inputs.copy(_step_inputs(slices, batch, context // BLOCK_SIZE))
        self._graphs[batch, context].replay()
        return self._buffers.logits[: len(slices)]

    @property
    def max_rows(self) -> int:
        """Slices that one step takes."""
        return self._batch_sizes[-1]

    def _capture(self, device: torch.device, progress: Callable[[float], None]) -> None:
        """Capture every graph; before, each batch size runs once, which loads its kernels."""
        steps = [(batch, context) for batch in self._batch_sizes for context in self._context_sizes]
        with recording(device) as recorder:
            for done, (batch, context) in enumerate(steps):
                progress(done / len(steps))
                step = partial(self._queue_step, batch, context)
                if context == self._context_sizes[0]:
                    self._inputs.copy(_step_inputs([], batch, context // BLOCK_SIZE))
                    recorder.warm_up(step)
                self._graphs[batch, context], _ = recorder.capture(step)

    def _queue_step(self, batch: int, context: int) -> Tensor:
        """Every kernel of a step, over the first `batch` rows of the buffers; their logits."""
        weights, buffers = self._weights, self._buffers
        numbers = self._inputs.on_device
        token_ids, positions = numbers[:batch], numbers[batch : 2 * batch]
        width = context // BLOCK_SIZE
        tables = numbers[2 * batch : (2 + width) * batch].view(batch, width)
        residual, x, qkv, mixed = (each[:batch] for each in (buffers.residual, buffers.x, buffers.qkv, buffers.mixed))
        delta, inner, logits = (each[:batch] for each in (buffers.delta, buffers.inner, buffers.logits))
        embed(token_ids, self._chosen, weights.embedding, residual)
        for index, layer in enumerate(weights.layers):
            addend = None if index == 0 else delta
            add_rms_norm(residual, addend, layer.attention_norm, self._eps, x, overlap=True)
            layer.qkv(x, qkv, overlap=True)
            self._attention(
                qkv,
                self._kv.keys[index],
                self._kv.values[index],
                positions,
                tables,
                mixed,
                max_context=context,
                scales=self._kv.scales(index),
                overlap=True,
            )
            layer.attention_out(mixed, delta, overlap=True)
            add_rms_norm(residual, delta, layer.mlp_norm, self._eps, x, overlap=True)
            layer.gate_up(x, inner, overlap=True)
            layer.down(inner, delta, overlap=True)
        add_rms_norm(residual, delta, weights.final_norm, self._eps, x, overlap=True)
        return torch.mm(x, weights.lm_head.t(), out=logits)


def context_sizes(max_context: int) -> tuple[int, ...]:
    """Bounds on the positions of a step's sequences: from SPLIT on twice the one before, the last >= max_context.

    Empty splits of the attention's grid cost time, so a graph for short contexts must not be one for long ones.
    """
    sizes = [SPLIT]
    while sizes[-1] < max_context:
        sizes.append(min(2 * sizes[-1], -(-max_context // SPLIT) * SPLIT))
    return tuple(sizes)


def _step_inputs(slices: Sequence[SequenceSlice], batch: int, table_width: int) -> list[int]:
    """Token ids [batch], positions [batch], block tables [batch, table_width]; rows past the slices at position -1."""
    num_empty = batch - len(slices)
    numbers = [part.token_ids[0] for part in slices]
    numbers += [0] * num_empty
    numbers += [part.start for part in slices]
    numbers += [-1] * num_empty
    for part in slices:
        blocks = part.block_table[: min(table_width, part.start // BLOCK_SIZE + 1)]
        numbers += blocks
        numbers += [0] * (table_width - len(blocks))
    numbers += [0] * (num_empty * table_width)
    return numbers


def _make_buffers(config: LlamaConfig, weights: HopperWeights, device: torch.device) -> _Buffers:
    def half(width: int) -> Tensor:
        return torch.zeros(MAX_BATCH, width, dtype=torch.float16, device=device)

    layer = weights.layers[0]
    return _Buffers(
        residual=torch.zeros(MAX_BATCH, config.hidden_size, device=device),
        x=half(config.hidden_size),
        qkv=half(layer.qkv.weight.num_outputs),
        mixed=half(layer.attention_out.weight.shape[1]),
        delta=half(config.hidden_size),
        inner=half(config.intermediate_size),
        logits=half(config.vocab_size),
    )
