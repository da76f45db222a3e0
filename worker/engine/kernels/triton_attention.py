"""Decode attention over the paged KV cache in Triton: for GPUs that attention.cu is not for.

A sequence is cut at multiples of SPLIT positions, whatever else is in the batch; one kernel attends to each piece, a
second one joins the pieces in order. Deterministic, and a row's result is independent of the batch.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

SPLIT = 256
MIN_HEADS = 16  # query heads of one program: a tensor core takes no fewer rows
NUM_WARPS = 4
NUM_STAGES = 2


@triton.jit(do_not_specialize=["table_width"])
def attend_splits(
    query_ptr: tl.tensor,
    keys_ptr: tl.tensor,
    values_ptr: tl.tensor,
    key_scales_ptr: tl.tensor | None,
    value_scales_ptr: tl.tensor | None,
    positions_ptr: tl.tensor,
    tables_ptr: tl.tensor,
    mixed_ptr: tl.tensor,
    stats_ptr: tl.tensor,
    scale: tl.tensor,
    num_kv_heads: tl.tensor,
    table_width: tl.tensor,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SPLIT: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """The query heads of one key-value head over one piece of one sequence, by the online softmax in base 2.

    mixed[row, head, split] is the sum of the values so weighted, stats[row, head, split] the greatest score and the sum
    of the weights. A piece past the sequence's end is left as it was.
    """
    row = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    position = tl.load(positions_ptr + row).to(tl.int32)
    first = split * SPLIT
    if first > position:
        return
    heads = tl.arange(0, HEADS)
    dims = tl.arange(0, DIMS)
    is_part = (heads < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    head = (row * num_kv_heads + kv_head) * GROUP + heads
    query = tl.load(query_ptr + head[:, None] * HEAD_DIM + dims[None, :], mask=is_part, other=0.0)
    greatest = tl.full([HEADS], float("-inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    mixed = tl.zeros([HEADS, DIMS], tl.float32)
    for start in range(first, tl.minimum(first + SPLIT, position + 1), TILE):
        places = start + tl.arange(0, TILE)
        is_seen = places <= position
        block = tl.load(tables_ptr + row * table_width + places // BLOCK_SIZE, mask=is_seen, other=0)
        slots = (block * BLOCK_SIZE + places % BLOCK_SIZE) * num_kv_heads + kv_head
        scale_slots = (block * num_kv_heads + kv_head) * BLOCK_SIZE + places % BLOCK_SIZE
        offsets = slots[:, None] * HEAD_DIM + dims[None, :]
        is_held = is_seen[:, None] & (dims < HEAD_DIM)[None, :]
        keys = tl.load(keys_ptr + offsets, mask=is_held, other=0).to(tl.float16)
        values = tl.load(values_ptr + offsets, mask=is_held, other=0).to(tl.float16)
        scores = tl.dot(query, tl.trans(keys)) * scale
        if key_scales_ptr is not None:
            scores *= tl.load(key_scales_ptr + scale_slots, mask=is_seen, other=0.0)[None, :]
        scores = tl.where(is_seen[None, :], scores, float("-inf"))
        higher = tl.maximum(greatest, tl.max(scores, 1))
        shrink = tl.exp2(greatest - higher)
        weights = tl.exp2(scores - higher[:, None])
        total = total * shrink + tl.sum(weights, 1)
        if value_scales_ptr is not None:
            weights *= tl.load(value_scales_ptr + scale_slots, mask=is_seen, other=0.0)[None, :]
        mixed = tl.dot(weights.to(tl.float16), values, mixed * shrink[:, None])
        greatest = higher
    at = head * tl.num_programs(2) + split
    tl.store(mixed_ptr + at[:, None] * HEAD_DIM + dims[None, :], mixed, mask=is_part)
    tl.store(stats_ptr + at * 2, greatest, mask=heads < GROUP)
    tl.store(stats_ptr + at * 2 + 1, total, mask=heads < GROUP)


@triton.jit(do_not_specialize=["max_splits"])
def join_pieces(
    mixed_ptr: tl.tensor,
    stats_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    out_ptr: tl.tensor,
    max_splits: tl.tensor,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    SPLIT: tl.constexpr,
) -> None:
    """out[row, head] of the pieces that the row's sequence has, joined in order."""
    row = tl.program_id(0)
    head = row * tl.num_programs(1) + tl.program_id(1)
    dims = tl.arange(0, DIMS)
    num_splits = tl.load(positions_ptr + row).to(tl.int32) // SPLIT + 1
    greatest = tl.load(stats_ptr + head * max_splits * 2)
    total = tl.zeros([1], tl.float32)
    mixed = tl.zeros([DIMS], tl.float32)
    for split in range(num_splits):
        at = head * max_splits + split
        score = tl.load(stats_ptr + at * 2)
        higher = tl.maximum(greatest, score)
        shrink = tl.exp2(greatest - higher)
        weight = tl.exp2(score - higher)
        total = total * shrink + tl.load(stats_ptr + at * 2 + 1) * weight
        piece = tl.load(mixed_ptr + at * HEAD_DIM + dims, mask=dims < HEAD_DIM, other=0.0)
        mixed = mixed * shrink + piece * weight
        greatest = higher
    tl.store(out_ptr + head * HEAD_DIM + dims, (mixed / total).to(tl.float16), mask=dims < HEAD_DIM)


def decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    positions: Tensor,
    tables: Tensor,
    num_keys: int,
) -> Tensor:
    """Attend one token of each sequence, whose key and value are already in the cache.

    Args:
        query: [B, H, D] fp16, contiguous, rotated.
        keys, values: [blocks, block size, kv heads, D] fp16 or int8, contiguous.
        key_scales, value_scales: of an int8 cache [blocks, kv heads, block size] float32, contiguous; else None.
        positions: [B] int64, of the tokens.
        tables: [B, any] int64, the blocks of each sequence up to its token's.
        num_keys: no position is this large.

    Returns:
        [B, H, D] fp16.
    """
    rows, num_heads, head_dim = query.shape
    num_kv_heads = keys.shape[2]
    assert query.dtype == torch.float16
    assert keys.dtype == values.dtype == (torch.float16 if key_scales is None else torch.int8)
    assert positions.dtype == tables.dtype == torch.int64
    assert query.is_contiguous()
    assert keys.is_contiguous()
    assert values.is_contiguous()
    assert tables.is_contiguous()
    num_splits = triton.cdiv(num_keys, SPLIT)
    mixed = torch.empty(rows, num_heads, num_splits, head_dim, device=query.device)
    stats = torch.empty(rows, num_heads, num_splits, 2, device=query.device)
    out = torch.empty_like(query)
    with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]  # Triton launches on the current device
        attend_splits[rows, num_kv_heads, num_splits](
            query,
            keys,
            values,
            key_scales,
            value_scales,
            positions,
            tables,
            mixed,
            stats,
            math.log2(math.e) / math.sqrt(head_dim),
            num_kv_heads,
            tables.shape[1],
            **variant(num_heads // num_kv_heads, head_dim, keys.shape[1]),
            num_warps=NUM_WARPS,
            num_stages=NUM_STAGES,
        )
        dims = triton.next_power_of_2(head_dim)
        join_pieces[rows, num_heads](mixed, stats, positions, out, num_splits, head_dim, dims, SPLIT)
    return out


def variant(group: int, head_dim: int, block_size: int) -> dict[str, int]:
    """What attend_splits is compiled for: `group` query heads per key-value head; padded to what tensor cores take."""
    dims = max(16, triton.next_power_of_2(head_dim))
    return {
        "GROUP": group,
        "HEADS": max(MIN_HEADS, triton.next_power_of_2(group)),
        "HEAD_DIM": head_dim,
        "DIMS": dims,
        "BLOCK_SIZE": block_size,
        "SPLIT": SPLIT,
        "TILE": 64 if dims <= 128 else 32,
    }
