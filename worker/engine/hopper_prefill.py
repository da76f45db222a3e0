"""Prefill on a Hopper GPU: all the step's longer slices in one pass, over whatever prefix is in the KV cache.

Every product reads the packed weights, dequantized in registers on their way to the tensor cores (kernels/gemm.py); no
float16 copy of a weight exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from worker.engine.batch import SequenceSlice
from worker.engine.config import LlamaConfig
from worker.engine.hopper_weights import HopperLayer, HopperWeights
from worker.engine.kernels.attention import BLOCK_SIZE, HEAD_DIM
from worker.engine.kernels.gemm import QuantizedGemm
from worker.engine.kernels.rowwise import add_rms_norm, rotate_and_write
from worker.engine.kv_tensors import KVTensors


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """What a prefill runs: T new tokens of S slices, which attend to K positions in all, themselves included.

    Attributes:
        token_ids: [T] int64.
        positions: [T] int32, each token's position in its sequence.
        slots: [T] int64, where its key and value go: block * BLOCK_SIZE + offset.
        key_slots: [K] int64, where the keys and values of each slice's sequence are, slice by slice.
        query_ends: [S + 1] int32, 0 and the row after each slice's last token.
        key_ends: [S + 1] int32, the same of key_slots.
        logit_rows: int64, tokens whose logits are wanted, in slice order.
        max_queries: tokens of the longest slice.
        max_keys: positions of the longest sequence.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    key_slots: Tensor
    query_ends: Tensor
    key_ends: Tensor
    logit_rows: Tensor
    max_queries: int
    max_keys: int


class Prefill:
    """The prefill of one model.

    Args:
        cos, sin: [positions, 64] float32, the rotary tables.
    """

    def __init__(self, config: LlamaConfig, weights: HopperWeights, kv: KVTensors, cos: Tensor, sin: Tensor) -> None:
        self._eps = config.rms_norm_eps
        self._num_heads = config.num_heads
        self._weights = weights
        self._kv = kv
        self._cos, self._sin = cos, sin

    def run(self, slices: Sequence[SequenceSlice]) -> Tensor:
        """Run slices of any length, and return the wanted logits, [number of them, V] float16, in slice order."""
        weights = self._weights
        plan = plan_prefill(slices, weights.embedding.device)
        residual = F.embedding(plan.token_ids, weights.embedding).float()
        x = torch.empty_like(residual, dtype=torch.float16)
        delta: Tensor | None = None
        for index, layer in enumerate(weights.layers):
            # The kernel before the first norm is torch's, which lets nothing start early.
            add_rms_norm(residual, delta, layer.attention_norm, self._eps, x, overlap=index > 0)
            delta = _multiply(layer.attention_out, self._attend(index, layer, x, plan))
            add_rms_norm(residual, delta, layer.mlp_norm, self._eps, x, overlap=True)
            delta = _multiply(layer.down, _multiply(layer.gate_up, x))
        if not plan.logit_rows.numel():
            return x.new_empty(0, weights.lm_head.shape[0])
        add_rms_norm(residual, delta, weights.final_norm, self._eps, x)
        return F.linear(x[plan.logit_rows], weights.lm_head)

    def _attend(self, index: int, layer: HopperLayer, x: Tensor, plan: PrefillPlan) -> Tensor:
        """[T, hidden] to [T, H * D]: causal attention, each slice over its own sequence; writes keys and values."""
        keys, values = self._kv.keys[index], self._kv.values[index]
        queries = x.new_empty(x.shape[0], self._num_heads * HEAD_DIM)
        qkv = _multiply(layer.qkv, x)
        rotate_and_write(qkv, queries, keys, values, plan.positions, plan.slots, self._cos, self._sin, overlap=True)
        gathered = (cache.flatten(0, 1).index_select(0, plan.key_slots) for cache in (keys, values))
        # Queries are the last of their sequence's positions: this operator aligns its causal mask at the end.
        mixed: Tensor = torch.ops.aten._flash_attention_forward(
            queries.view(x.shape[0], -1, HEAD_DIM),
            *gathered,
            plan.query_ends,
            plan.key_ends,
            plan.max_queries,
            plan.max_keys,
            0.0,  # dropout
            True,  # causal
            False,  # return the mask
        )[0]
        return mixed.flatten(1)


def _multiply(gemm: QuantizedGemm, x: Tensor) -> Tensor:
    return gemm(x, x.new_empty(x.shape[0], gemm.weight.num_outputs), overlap=True)


def plan_prefill(slices: Sequence[SequenceSlice], device: torch.device) -> PrefillPlan:
    """Turn slices into tensors on `device`, by one copy."""
    lengths = [len(part.token_ids) for part in slices]
    num_keys = [part.start + length for part, length in zip(slices, lengths, strict=True)]
    tables = [_key_slots(part.block_table, keys) for part, keys in zip(slices, num_keys, strict=True)]
    query_ends = [0, *accumulate(lengths)]
    wanted = [np.arange(end - part.num_logit_rows, end) for part, end in zip(slices, query_ends[1:], strict=True)]
    parts = [
        np.concatenate([np.asarray(part.token_ids) for part in slices]),
        np.concatenate([np.arange(part.start, keys) for part, keys in zip(slices, num_keys, strict=True)]),
        np.concatenate([table[part.start :] for part, table in zip(slices, tables, strict=True)]),
        np.concatenate(tables),
        np.asarray(query_ends),
        np.asarray([0, *accumulate(num_keys)]),
        np.concatenate(wanted),
    ]
    on_host = torch.from_numpy(np.concatenate(parts).astype(np.int64))
    on_device = (on_host.pin_memory() if device.type == "cuda" else on_host).to(device, non_blocking=True)
    ends = [0, *accumulate(len(part) for part in parts)]
    token_ids, positions, slots, key_slots, query_rows, key_rows, logit_rows = (
        on_device[first:end] for first, end in pairwise(ends)
    )
    return PrefillPlan(
        token_ids=token_ids,
        positions=positions.int(),
        slots=slots,
        key_slots=key_slots,
        query_ends=query_rows.int(),
        key_ends=key_rows.int(),
        logit_rows=logit_rows,
        max_queries=max(lengths),
        max_keys=max(num_keys),
    )


def _key_slots(block_table: Sequence[int], num_keys: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """[num_keys]: where the first positions of a sequence are in the cache."""
    blocks = np.asarray(block_table[: -(-num_keys // BLOCK_SIZE)], dtype=np.int64)
    slots: np.ndarray[tuple[int], np.dtype[np.int64]] = np.add.outer(blocks * BLOCK_SIZE, np.arange(BLOCK_SIZE)).ravel()
    return slots[:num_keys]
