"""Attention over the paged KV cache: what a step reads and writes, and one way to attend per device.

On the CPU the result of a query has the same bits whatever else the step runs, however the prompt was cut, and whether
the position was computed in prefill or decode: every query is its own row of fixed-shape products with KEY_TILE keys,
and the tiles are combined one after the other by the online softmax, in which a fully masked tile changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.engine.batch import SequenceSlice
from worker.engine.kv_tensors import KVCache

# Keys of one product on the CPU; at 128 a short chat is one tile, and a product still outweighs the call around it.
KEY_TILE = 128


@dataclass(frozen=True, slots=True)
class QueryGroup:
    """Slices that one call attends: either one slice of any length, or any number of slices of one token.

    Attributes:
        rows: [Q] int64, where its queries stand among the step's T tokens.
        positions: [Q] int64, position of each query, lowest first.
        blocks: [G, M] int64, block table of each slice, padded with its own first block; G is 1 or Q.
        num_keys: positions of the longest slice.
    """

    rows: Tensor
    positions: Tensor
    blocks: Tensor
    num_keys: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step runs, as tensors on the device. T counts the new tokens of all its slices.

    Attributes:
        token_ids: [T] int64.
        positions: [T] int64, each token's position in its sequence.
        slots: [T] int64, where its key and value go: block * block_size + offset.
        fresh_blocks: int64, blocks that get their first position in this step.
        logit_rows: int64, tokens whose logits are wanted, in slice order.
        groups: the queries, each in exactly one group.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    fresh_blocks: Tensor
    logit_rows: Tensor
    groups: tuple[QueryGroup, ...]


class Attention(Protocol):
    """Causal attention of a step's new tokens over their sequences, themselves included."""

    def __call__(self, layer: int, query: Tensor, plan: StepPlan) -> Tensor:
        """Attend [T, H, D] queries, whose keys and values are already written; returns [T, H, D]."""
        ...


def make_attention(kv: KVCache, device: torch.device) -> Attention:
    """The attention for `device`, over what `kv` holds."""
    return TiledAttention(kv) if device.type == "cpu" else GatheredAttention(kv)


class TiledAttention:
    """CPU: float32, one query after the other in arithmetic, all queries of a group at once in time."""

    def __init__(self, kv: KVCache) -> None:
        if KEY_TILE % kv.block_size:
            raise ValueError(f"the CPU attends {KEY_TILE} keys at a time; blocks of {kv.block_size} do not divide them")
        self._kv = kv

    def __call__(self, layer: int, query: Tensor, plan: StepPlan) -> Tensor:
        """Attend [T, H, D]; returns [T, H, D] float32."""
        out = torch.empty_like(query)
        for group in plan.groups:
            out[group.rows] = self._attend(layer, query[group.rows], group)
        return out

    def _attend(self, layer: int, query: Tensor, group: QueryGroup) -> Tensor:
        """[Q, H, D] queries of one group to [Q, H, D]."""
        num_queries, num_heads, head_dim = query.shape
        num_kv_heads = self._kv.num_kv_heads
        state_shape = (num_kv_heads, num_queries, num_heads // num_kv_heads, 1)
        # Query head h reads key-value head h // (number of query heads per key-value head).
        by_head = query.view(num_queries, num_kv_heads, -1, head_dim).transpose(0, 1) * head_dim**-0.5
        by_head = by_head.contiguous()
        maximum = torch.full(state_shape, -math.inf)
        total = torch.zeros(state_shape)
        weighted = torch.zeros_like(by_head)
        for first_key in range(0, group.num_keys, KEY_TILE):
            # Queries before this tile see none of it; they stand first.
            skip = int(torch.searchsorted(group.positions, first_key))
            keys, values = self._gather(layer, group.blocks, first_key, skip)
            scores = self._scores(by_head[:, skip:], keys, group.positions[skip:], first_key)
            new_maximum = torch.maximum(maximum[:, skip:], scores.amax(-1, keepdim=True))
            shrink = torch.exp(maximum[:, skip:] - new_maximum)
            weights = torch.exp(scores - new_maximum)
            maximum[:, skip:] = new_maximum
            total[:, skip:] = total[:, skip:] * shrink + weights.sum(-1, keepdim=True)
            weighted[:, skip:] = weighted[:, skip:] * shrink + _per_head(weights, values)
        return (weighted / total).transpose(0, 1).reshape(query.shape)

    def _gather(self, layer: int, blocks: Tensor, first_key: int, skip: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one tile, each a view [kv heads, 1 or Q - skip, KEY_TILE, D]."""
        block_size = self._kv.block_size
        column = first_key // block_size
        tile = blocks[:, column : column + KEY_TILE // block_size]
        if blocks.shape[0] > 1:
            tile = tile[skip:]
        missing = KEY_TILE // block_size - tile.shape[1]
        if missing:
            tile = torch.cat([tile, tile[:, :1].expand(-1, missing)], dim=1)
        keys, values = (found.flatten(1, 2).permute(2, 0, 1, 3) for found in self._kv.read(layer, tile))
        return keys, values

    def _scores(self, query: Tensor, keys: Tensor, positions: Tensor, first_key: int) -> Tensor:
        """[kv heads, Q, heads per kv head, KEY_TILE], minus infinity where a key comes after its query."""
        scores = _per_head(query, keys.transpose(2, 3))
        if int(positions[0]) < first_key + KEY_TILE - 1:
            ahead = torch.arange(first_key, first_key + KEY_TILE) > positions[:, None]
            scores.masked_fill_(ahead[None, :, None, :], -math.inf)
        return scores


class GatheredAttention:
    """GPU: torch's own attention over keys and values copied out of their blocks."""

    def __init__(self, kv: KVCache) -> None:
        self._kv = kv

    def __call__(self, layer: int, query: Tensor, plan: StepPlan) -> Tensor:
        """Attend [T, H, D]; returns [T, H, D] in the dtype of the cache."""
        out = torch.empty(query.shape, dtype=self._kv.dtype, device=query.device)
        for group in plan.groups:
            out[group.rows] = self._attend(layer, query[group.rows].to(self._kv.dtype), group)
        return out

    def _attend(self, layer: int, query: Tensor, group: QueryGroup) -> Tensor:
        """[Q, H, D] queries of one group to [Q, H, D]."""
        num_slices = group.blocks.shape[0]
        keys, values = (
            found.flatten(1, 2)[:, : group.num_keys].transpose(1, 2) for found in self._kv.read(layer, group.blocks)
        )
        # The query heads that share a key-value head stand as its queries: [G, kv heads, Q / G * sharing heads, D].
        num_kv_heads, head_dim = keys.shape[1], query.shape[2]
        sharing = query.shape[1] // num_kv_heads
        folded = query.view(num_slices, -1, num_kv_heads, sharing, head_dim).permute(0, 2, 1, 3, 4).flatten(2, 3)
        visible = torch.arange(group.num_keys, device=query.device) <= group.positions[:, None]
        mask = visible.repeat_interleave(sharing, 0).view(num_slices, 1, -1, group.num_keys)
        mixed = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask)
        by_query = mixed.view(num_slices, num_kv_heads, -1, sharing, head_dim)
        return by_query.permute(0, 2, 1, 3, 4).reshape(query.shape)


def plan_step(slices: Sequence[SequenceSlice], block_size: int, device: torch.device) -> StepPlan:
    """Turn the slices of a step into tensors on `device`."""
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    first_rows: list[int] = []
    logit_rows: list[int] = []
    for part in slices:
        end = part.start + len(part.token_ids)
        assert part.token_ids, "a slice has at least one token"
        assert len(part.block_table) * block_size >= end, "the block table covers the slice"
        first_rows.append(len(token_ids))
        token_ids.extend(part.token_ids)
        logit_rows.extend(range(len(token_ids) - part.num_logit_rows, len(token_ids)))
        positions.extend(range(part.start, end))
        slots.extend(part.block_table[p // block_size] * block_size + p % block_size for p in range(part.start, end))
    return StepPlan(
        token_ids=_int64(token_ids, device),
        positions=_int64(positions, device),
        slots=_int64(slots, device),
        fresh_blocks=_int64([slot // block_size for slot in slots if slot % block_size == 0], device),
        logit_rows=_int64(logit_rows, device),
        groups=_groups(slices, first_rows, block_size, device),
    )


def _groups(
    slices: Sequence[SequenceSlice], first_rows: Sequence[int], block_size: int, device: torch.device
) -> tuple[QueryGroup, ...]:
    """All slices of one token in one group; every longer slice in a group of its own."""
    groups = []
    single = []
    for row, part in zip(first_rows, slices, strict=True):
        num_tokens = len(part.token_ids)
        if num_tokens == 1:
            single.append((part.start, row, part.block_table))
            continue
        num_keys = part.start + num_tokens
        groups.append(
            QueryGroup(
                rows=torch.arange(row, row + num_tokens, device=device),
                positions=torch.arange(part.start, num_keys, device=device),
                blocks=_int64([part.block_table[: -(-num_keys // block_size)]], device),
                num_keys=num_keys,
            )
        )
    if single:
        single.sort(key=lambda entry: entry[0])
        num_keys = single[-1][0] + 1
        width = -(-num_keys // block_size)
        tables = [list(table[: start // block_size + 1]) for start, _, table in single]
        groups.append(
            QueryGroup(
                rows=_int64([row for _, row, _ in single], device),
                positions=_int64([start for start, _, _ in single], device),
                blocks=_int64([table + table[:1] * (width - len(table)) for table in tables], device),
                num_keys=num_keys,
            )
        )
    return tuple(groups)


def _int64(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)


def _per_head(left: Tensor, right: Tensor) -> Tensor:
    """Multiply [heads, Q, M, K] by [heads, 1 or Q, K, N] into [heads, Q, M, N], each of the Q a product of its own."""
    heads, queries, rows, inner = left.shape
    out = torch.empty(heads, queries, rows, right.shape[3])
    for head in range(heads):
        torch.bmm(left[head], right[head].expand(queries, inner, -1), out=out[head])
    return out
