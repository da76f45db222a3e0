"""Attention over an int8 KV cache without a GPU: the kernels' own sources, lane by lane, by their own launchers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.engine.kv_oracle import (
    MAX_ERROR,
    assert_same_codes,
    attention_of,
    empty_cache,
    relative_error,
    rotary_tables,
    rotated,
    scattered_cache,
    written,
)
from tests.engine.lanes import LaneKernel, compile_on_lanes
from worker.engine.kernels import attention, rowwise
from worker.engine.kernels.attention import BLOCK_SIZE, DecodeAttention, Variant
from worker.engine.kernels.rowwise import gather_codes, rotate_and_write

CPU = torch.device("cpu")
MAX_CONTEXT = 320
POSITIONS = [0, 70, -1, 255, 300]  # one tile, two, none, four, and a second split
FEW, MANY = 1000, 0  # multiprocessors, for which as many blocks of threads are few or many


@pytest.fixture(scope="module", autouse=True)
def lanes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kernels are compiled for the CPU, each once."""
    folder = tmp_path_factory.mktemp("lanes")

    @cache
    def load_attention(_: int | None, variant: Variant) -> LaneKernel:
        defines, prelude, _shared = variant.source()
        return compile_on_lanes(folder, "attention.cu", defines, prelude, ["decode_attention"])["decode_attention"]

    @cache
    def load_rowwise(_: int | None, hidden: int) -> dict[str, LaneKernel]:
        return compile_on_lanes(folder, "rowwise.cu", *rowwise.source_of(hidden), ["rotate_and_encode", "gather_codes"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_load", load_attention)
        patch.setattr(rowwise, "_load", load_rowwise)
        yield


def make_attention(
    num_heads: int, num_kv_heads: int, rows: int, num_multiprocessors: int, monkeypatch: pytest.MonkeyPatch
) -> DecodeAttention:
    """As on a GPU of that size."""
    found = SimpleNamespace(multi_processor_count=num_multiprocessors)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
    return DecodeAttention(num_heads, num_kv_heads, rows, MAX_CONTEXT, *rotary_tables())


def poisoned(*shape: int) -> Tensor:
    """fp16, every element NaN."""
    return torch.full(shape, math.nan, dtype=torch.float16)


@pytest.mark.parametrize(("num_heads", "num_kv_heads", "num_multiprocessors"), [(2, 2, MANY), (8, 1, FEW)])
def test_decode_attention_over_codes(
    num_heads: int, num_kv_heads: int, num_multiprocessors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new position's codes are Int8KVTensors', no other's NaN gets in, and the result is softmax over the codes."""
    generator = torch.Generator().manual_seed(num_heads)
    positions, rows, heads = torch.tensor(POSITIONS).int(), len(POSITIONS), num_heads + 2 * num_kv_heads
    kv, tables = scattered_cache(num_kv_heads, positions, MAX_CONTEXT, generator)
    qkv = torch.randn(rows, heads * 128, generator=generator).half()
    attend = make_attention(num_heads, num_kv_heads, rows, num_multiprocessors, monkeypatch)
    out = poisoned(rows, num_heads * 128)
    attend(qkv, kv.keys[0], kv.values[0], positions, tables, out, max_context=MAX_CONTEXT, scales=kv.scales(0))

    sound = (positions >= 0).nonzero().flatten()
    at = positions[sound].long()
    slots = tables[sound, at // BLOCK_SIZE].long() * BLOCK_SIZE + at % BLOCK_SIZE
    assert_same_codes(kv, slots, written(qkv[sound], num_heads, num_kv_heads, positions[sound]))
    query = rotated(qkv.view(rows, heads, 128)[:, :num_heads], positions.clamp(min=0))
    for row in sound.tolist():
        reference = attention_of(query[row], kv, tables[row], POSITIONS[row] + 1)
        assert relative_error(out[row], reference) < MAX_ERROR, f"position {POSITIONS[row]}"
    assert out[positions < 0].isnan().all()


def test_the_lanes_compute_what_a_gpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel of a float16 cache, which GPUs run, is right on them as well: so they are."""
    num_heads, position = 2, 130
    generator = torch.Generator().manual_seed(1)
    keys, values = torch.randn(2, 3, BLOCK_SIZE, num_heads, 128, generator=generator).half()
    qkv = torch.randn(1, 3 * num_heads * 128, generator=generator).half()
    positions, tables = torch.tensor([position]).int(), torch.tensor([[2, 0, 1]]).int()
    attend = make_attention(num_heads, num_heads, 1, MANY, monkeypatch)
    out = attend(qkv, keys, values, positions, tables, poisoned(1, num_heads * 128), max_context=MAX_CONTEXT)
    query, key = (rotated(qkv.view(1, 3, num_heads, 128)[:, part], positions) for part in (0, 1))
    assert torch.equal(values[1, position % BLOCK_SIZE], qkv.view(3, num_heads, 128)[2])
    assert relative_error(keys[1, position % BLOCK_SIZE], key[0].double()) < 4e-4
    past, weighed = (each[tables[0].long()].flatten(0, 1)[: position + 1].double() for each in (keys, values))
    weights = torch.einsum("hd,shd->hs", query[0].double(), past).div(128**0.5).softmax(dim=-1)
    assert relative_error(out[0], torch.einsum("hs,shd->hd", weights, weighed).flatten()) < MAX_ERROR


def test_prefill_writes_and_reads_the_same_codes() -> None:
    """Int8KVTensors' to the bit, of numbers of any size; a position of -1 writes nothing."""
    num_heads, num_kv_heads, rows = 4, 2, 6
    generator = torch.Generator().manual_seed(2)
    positions = torch.tensor([0, 5, 64, 1000, 2047, -1]).int()
    qkv = torch.randn(rows, (num_heads + 2 * num_kv_heads) * 128, generator=generator)
    qkv = (qkv * torch.tensor([1e-5, 0.01, 1.0, 50.0, 1000.0, 1.0])[:, None]).half()
    qkv[2, num_heads * 128 :] = 0
    kv, queries = empty_cache(num_kv_heads, rows, CPU, torch.float16), poisoned(rows, num_heads * 128)
    slots = torch.arange(rows) * BLOCK_SIZE + positions.clamp(min=0) % BLOCK_SIZE
    rotate_and_write(qkv, queries, kv.keys[0], kv.values[0], positions, slots, *rotary_tables(), scales=kv.scales(0))
    assert_same_codes(kv, slots[:5], written(qkv[:5], num_heads, num_kv_heads, positions[:5]))
    assert not kv.keys[0][5].any()
    query = rotated(qkv.view(rows, -1, 128)[:5, :num_heads], positions[:5])
    assert relative_error(queries[:5], query.flatten(1).double()) < 4e-4
    order = torch.tensor([4, 0, 2, 3, 1])
    found = gather_codes(kv.keys[0], kv.values[0], kv.scales(0), slots[order].int())
    for ours, theirs in zip(found, kv.read(0, torch.arange(rows)), strict=True):
        assert torch.equal(ours, theirs.flatten(0, 1)[slots[order]])


def test_what_is_not_finite_stays_so_and_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key or a value makes all of its head's result so, of its sequence alone."""
    positions, num_heads = torch.tensor([70, 270, 0]).int(), 2
    generator = torch.Generator().manual_seed(4)
    kv, tables = scattered_cache(num_heads, positions, MAX_CONTEXT, generator)
    qkv = torch.randn(3, 3, num_heads, 128, generator=generator).half()
    qkv[0, 1, 0, 77] = -math.inf
    qkv[1, 2, 1, 5] = math.nan
    attend = make_attention(num_heads, num_heads, 3, MANY, monkeypatch)
    out = poisoned(3, num_heads * 128)
    where = (kv.keys[0], kv.values[0], positions, tables, out)
    attend(qkv.view(3, -1), *where, max_context=MAX_CONTEXT, scales=kv.scales(0))
    is_finite = out.view(3, num_heads, 128).isfinite()
    assert is_finite.all(-1).tolist() == is_finite.any(-1).tolist() == [[False, True], [True, False], [True, True]]
