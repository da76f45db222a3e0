"""Prefill on a Hopper GPU: all the step's longer slices in one pass, over whatever prefix is in the KV cache.

Whole prompts of up to 512 tokens together run as a CUDA graph with room for them: kernel by kernel a pass takes the
host 8 ms whatever its length, in which the device could do two short ones.

Every product reads the packed weights, dequantized in registers on their way to the tensor cores (kernels/gemm.py); no
float16 copy of a weight exists. With int8 weights the activations may be rounded to int8 instead, where they have more
than WIDE_ROWS rows: then the int8 tensor cores multiply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.engine.batch import SequenceSlice
from worker.engine.config import ActivationFormat, LlamaConfig
from worker.engine.cuda_graphs import StagedNumbers, recording
from worker.engine.hopper_prefill_plan import (
    GRAPH_TOKENS,
    PrefillPlan,
    PrefillRoom,
    exact_room,
    find_graph_room,
    graph_room,
    read_plan,
    write_plan,
)
from worker.engine.hopper_weights import HopperWeights
from worker.engine.kernels.attention import HEAD_DIM
from worker.engine.kernels.gemm import WIDE_ROWS, QuantizedGemm
from worker.engine.kernels.round_rows import RoundedRows, round_rows
from worker.engine.kernels.rowwise import add_rms_norm, gather_codes, rotate_and_write
from worker.engine.kv_tensors import KVCache

Multiply = Callable[[QuantizedGemm, Tensor], Tensor]


class Prefill:
    """The prefill of one model.

    Args:
        cos, sin: [positions, 64] float32, the rotary tables.
        activations: INT8 with int8 weights only.
    """

    def __init__(
        self,
        config: LlamaConfig,
        weights: HopperWeights,
        kv: KVCache,
        cos: Tensor,
        sin: Tensor,
        activations: ActivationFormat = ActivationFormat.FLOAT,
    ) -> None:
        self._eps = config.rms_norm_eps
        self._num_heads = config.num_heads
        self._weights = weights
        self._kv = kv
        self._cos, self._sin = cos, sin
        self._is_rounded = activations is ActivationFormat.INT8
        self._device = weights.embedding.device
        self._inputs = StagedNumbers(graph_room(GRAPH_TOKENS[-1]).size, self._device)
        self._graphs: dict[PrefillRoom, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._capture()

    def run(self, slices: Sequence[SequenceSlice]) -> Tensor:
        """Run slices of any length.

        Returns:
            The wanted logits, [number of them, V] float16, in slice order; the next call may overwrite them.
        """
        room = find_graph_room(slices)
        if room is None:
            room = exact_room(slices)
            numbers = torch.from_numpy(write_plan(slices, room)).pin_memory()
            return self._queue(read_plan(numbers.to(self._device, non_blocking=True), room))
        graph, logits = self._graphs[room]
        self._inputs.copy(write_plan(slices, room))
        graph.replay()
        return logits[: sum(part.num_logit_rows for part in slices)]

    def _capture(self) -> None:
        """Every graph; before, its kernels run once, over no slice."""
        with recording(self._device) as recorder:
            for num_tokens in reversed(GRAPH_TOKENS):  # the largest first: the others find room in its memory
                room = graph_room(num_tokens)
                self._inputs.copy(write_plan([], room))

                def step(room: PrefillRoom = room) -> Tensor:
                    return self._queue(read_plan(self._inputs.on_device, room))

                recorder.warm_up(step)
                self._graphs[room] = recorder.capture(step)

    def _queue(self, plan: PrefillPlan) -> Tensor:
        """Every kernel of a prefill; the logits of `plan.logit_rows`."""
        weights = self._weights
        residual = F.embedding(plan.token_ids, weights.embedding).float()
        x = torch.empty_like(residual, dtype=torch.float16)
        multiply: Multiply = RoundedProducts() if self._is_rounded and len(x) > WIDE_ROWS else _multiply
        delta: Tensor | None = None
        for index, layer in enumerate(weights.layers):
            # The kernel before the first norm is torch's, which lets nothing start early.
            add_rms_norm(residual, delta, layer.attention_norm, self._eps, x, overlap=index > 0)
            delta = multiply(layer.attention_out, self._attend(index, multiply(layer.qkv, x), plan))
            add_rms_norm(residual, delta, layer.mlp_norm, self._eps, x, overlap=True)
            delta = multiply(layer.down, multiply(layer.gate_up, x))
        if not plan.room.num_logit_rows:
            return x.new_empty(0, weights.lm_head.shape[0])
        add_rms_norm(residual, delta, weights.final_norm, self._eps, x)
        return F.linear(x.index_select(0, plan.logit_rows), weights.lm_head)

    def _attend(self, index: int, qkv: Tensor, plan: PrefillPlan) -> Tensor:
        """[T, H * D]: causal attention, each slice over its own sequence; writes keys and values."""
        keys, values, scales = self._kv.keys[index], self._kv.values[index], self._kv.scales(index)
        queries = qkv.new_empty(qkv.shape[0], self._num_heads * HEAD_DIM)
        where = (plan.positions, plan.slots, self._cos, self._sin)
        rotate_and_write(qkv, queries, keys, values, *where, scales=scales, overlap=True)
        if scales is None:
            gathered = tuple(cache.flatten(0, 1).index_select(0, plan.key_slots) for cache in (keys, values))
        else:
            gathered = gather_codes(keys, values, scales, plan.key_slots, overlap=True)
        # Queries are the last of their sequence's positions: this operator aligns its causal mask at the end.
        mixed: Tensor = torch.ops.aten._flash_attention_forward(
            queries.view(qkv.shape[0], -1, HEAD_DIM),
            *gathered,
            plan.query_ends,
            plan.key_ends,
            plan.room.max_queries,
            plan.room.max_keys,
            0.0,  # dropout
            True,  # causal
            False,  # return the mask
        )[0]
        return mixed.flatten(1)


class RoundedProducts:
    """Products of activations rounded to int8, in one prefill.

    Products of one width round into the same room, one after the other: each kernel waits for those before it.
    """

    def __init__(self) -> None:
        self._rooms: dict[int, RoundedRows] = {}

    def __call__(self, gemm: QuantizedGemm, x: Tensor) -> Tensor:
        """Multiply [T, K] fp16 into [T, num_outputs]."""
        rows, columns = x.shape
        if columns not in self._rooms:
            self._rooms[columns] = RoundedRows.empty(rows, columns, x.device)
        rounded = round_rows(x, self._rooms[columns], overlap=True)
        return gemm.multiply_rounded(rounded, x.new_empty(rows, gemm.weight.num_outputs), overlap=True)


def _multiply(gemm: QuantizedGemm, x: Tensor) -> Tensor:
    return gemm(x, x.new_empty(x.shape[0], gemm.weight.num_outputs), overlap=True)
