"""An int8 KV cache on the Hopper kernels: codes to the bit, attention against float64 over them, and whole models."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.engine.kv_oracle import (
    CPU,
    MAX_CONTEXT,
    MAX_ERROR,
    VOCAB,
    assert_same_codes,
    attention_of,
    empty_cache,
    relative_error,
    rotary_tables,
    rotated,
    same_bits,
    scattered_cache,
    small_config,
    written,
)
from tests.engine.oracle import block_tables, random_prompts
from tests.engine.random_source import RandomSource
from worker.engine.batch import SequenceSlice
from worker.engine.config import KVFormat, Quantization
from worker.engine.hopper_model import HopperModel
from worker.engine.kernels.attention import BLOCK_SIZE, DecodeAttention
from worker.engine.kernels.rowwise import gather_codes, rotate_and_write
from worker.engine.kv_tensors import Int8KVTensors
from worker.engine.loader import build_model, load_hopper_model, load_weights

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

CUDA = torch.device("cuda", 0)
POSITIONS = [0, 62, 63, 64, 254, 255, 256, 999, 2047, -1, 15, 16]
# Of a row's logits, relative. fp16 activations turn some codes round to their neighbours, so that ours and the oracle's
# int8 caches differ by about as much as int8 from float.
MAX_LOGITS_ERROR, MAX_KV_ERROR = 2.5e-2, 4e-2


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "fused"), [(32, 32, True), (64, 8, True), (8, 1, True), (64, 8, False)]
)
def test_decode_attention_over_codes(num_heads: int, num_kv_heads: int, fused: bool) -> None:
    """The new position's codes are the CPU's, nothing else is written, and the result is softmax over the codes."""
    generator = torch.Generator(CUDA).manual_seed(num_heads)
    positions = torch.tensor(POSITIONS * (3 if num_kv_heads == 8 else 1), device=CUDA).int()  # few and many blocks
    rows, heads = len(positions), num_heads + 2 * num_kv_heads
    kv, tables = scattered_cache(num_kv_heads, positions, MAX_CONTEXT, generator)
    before = [each.clone() for each in (kv.keys[0], kv.values[0], *kv.scales(0))]
    qkv = torch.randn(rows, heads * 128, device=CUDA, generator=generator).half()
    cos, sin = (table.to(CUDA) for table in rotary_tables())
    attend = DecodeAttention(num_heads, num_kv_heads, rows, MAX_CONTEXT, cos, sin)
    at = positions.long().clamp(min=0)
    slots = tables[torch.arange(rows, device=CUDA), at // BLOCK_SIZE].long() * BLOCK_SIZE + at % BLOCK_SIZE
    x = qkv
    if not fused:
        x = torch.full((rows, num_heads * 128), math.nan, device=CUDA).half()
        rotate_and_write(qkv, x, kv.keys[0], kv.values[0], positions, slots, cos, sin, scales=kv.scales(0))

    def run(first: int, last: int, max_context: int) -> Tensor:
        return attend(
            x[first:last],
            kv.keys[0],
            kv.values[0],
            positions[first:last],
            tables[first:last],
            torch.full((last - first, num_heads * 128), math.nan, device=CUDA).half(),
            max_context=max_context,
            scales=kv.scales(0),
            writes_cache=fused,
        )

    out = run(0, rows, MAX_CONTEXT)
    sound = (positions >= 0).nonzero().flatten()
    assert_same_codes(kv, slots[sound], written(qkv[sound], num_heads, num_kv_heads, positions[sound]))
    is_new = torch.zeros(len(tables.flatten()) * BLOCK_SIZE, dtype=torch.bool, device=CUDA)
    is_new[slots[sound]] = True
    for ours, theirs in zip((kv.keys[0], kv.values[0]), before, strict=False):
        assert torch.equal(ours.flatten(0, 1)[~is_new], theirs.flatten(0, 1)[~is_new])
    others = ~is_new.view(-1, 1, BLOCK_SIZE).expand(-1, num_kv_heads, -1)
    for ours, theirs in zip(kv.scales(0), before[2:], strict=True):
        assert same_bits(ours[others], theirs[others])

    query = rotated(qkv.view(rows, heads, 128)[:, :num_heads], positions.clamp(min=0))
    errors = {
        (row, position): relative_error(out[row], attention_of(query[row], kv, tables[row], position + 1))
        for row, position in enumerate(positions.tolist())
        if position >= 0
    }
    print(f"{num_heads}/{num_kv_heads} fused {fused}: { ({at: f'{error:.1e}' for (_, at), error in errors.items()}) }")
    assert all(error < MAX_ERROR for error in errors.values())
    assert out[positions < 0].isnan().all()
    assert torch.equal(run(0, rows, MAX_CONTEXT)[sound], out[sound])
    assert torch.equal(run(7, 8, 1024)[0], out[7])


def test_prefill_makes_the_codes_that_decode_makes() -> None:
    """Those of the CPU; and what is gathered for prefill is what the cache reads back in float16."""
    num_heads, num_kv_heads, rows = 16, 8, 70
    generator = torch.Generator(CUDA).manual_seed(3)
    positions = torch.randint(0, MAX_CONTEXT, (rows,), device=CUDA, generator=generator).int()
    qkv = torch.randn(rows, (num_heads + 2 * num_kv_heads) * 128, device=CUDA, generator=generator)
    qkv *= torch.logspace(-5, 3, rows, device=CUDA)[:, None]
    qkv = qkv.half()
    qkv[5, num_heads * 128 :] = 0
    slots = torch.arange(rows, device=CUDA) * BLOCK_SIZE + positions % BLOCK_SIZE
    cos, sin = (table.to(CUDA) for table in rotary_tables())
    by_prefill, by_decode = (empty_cache(num_kv_heads, rows, CUDA, torch.float16) for _ in range(2))
    queries, out = (torch.full((rows, num_heads * 128), math.nan, device=CUDA).half() for _ in range(2))
    rotate_and_write(
        qkv, queries, by_prefill.keys[0], by_prefill.values[0], positions, slots, cos, sin, scales=by_prefill.scales(0)
    )
    tables = torch.arange(rows, device=CUDA).int()[:, None].expand(-1, MAX_CONTEXT // BLOCK_SIZE).contiguous()
    attend = DecodeAttention(num_heads, num_kv_heads, rows, MAX_CONTEXT, cos, sin)
    where = (by_decode.keys[0], by_decode.values[0], positions, tables, out)
    attend(qkv, *where, max_context=MAX_CONTEXT, scales=by_decode.scales(0))

    expected = written(qkv, num_heads, num_kv_heads, positions)
    for kv in (by_prefill, by_decode):
        assert_same_codes(kv, slots, expected)
    query = rotated(qkv.view(rows, -1, 128)[:, :num_heads], positions).flatten(1).to(CUDA)
    assert relative_error(queries, query.double()) < 4e-4
    order = torch.randperm(rows, device=CUDA, generator=generator)
    found = gather_codes(by_prefill.keys[0], by_prefill.values[0], by_prefill.scales(0), slots[order].int())
    for ours, theirs in zip(found, by_prefill.read(0, torch.arange(rows, device=CUDA)), strict=True):
        assert torch.equal(ours, theirs.flatten(0, 1)[slots[order]])


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_so_and_where_it_is(broken: float) -> None:
    """A key or a value makes all of its head's result so, of its sequence alone."""
    num_heads, rows = 4, 3
    generator = torch.Generator(CUDA).manual_seed(4)
    positions = torch.tensor([70, 300, 0], device=CUDA).int()
    kv, tables = scattered_cache(num_heads, positions, MAX_CONTEXT, generator)
    qkv = torch.randn(rows, 3 * num_heads * 128, device=CUDA, generator=generator).half()
    qkv.view(rows, 3, num_heads, 128)[0, 1, 2, 77] = broken  # row 0, a key of head 2
    qkv.view(rows, 3, num_heads, 128)[1, 2, 3, 5] = broken  # row 1, a value of head 3
    cos, sin = (table.to(CUDA) for table in rotary_tables())
    attend = DecodeAttention(num_heads, num_heads, rows, MAX_CONTEXT, cos, sin)
    out = torch.full((rows, num_heads * 128), math.nan, device=CUDA).half()
    attend(qkv, kv.keys[0], kv.values[0], positions, tables, out, max_context=MAX_CONTEXT, scales=kv.scales(0))
    is_finite = out.view(rows, num_heads, 128).isfinite()
    expected = torch.ones(rows, num_heads, dtype=torch.bool, device=CUDA)
    expected[0, 2] = expected[1, 3] = False
    assert torch.equal(is_finite.all(-1), expected)
    assert torch.equal(is_finite.any(-1), expected)


def largest_error(ours: Tensor, theirs: Tensor) -> float:
    """Of all rows, norm of the difference over norm of theirs; NaN if ours has one."""
    ours, theirs = ours.cpu().double(), theirs.cpu().double()
    return float(((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).max())


def test_a_model_gives_the_oracles_logits() -> None:
    """Prompts, a chunk over what is cached, and decodes over borders of blocks and splits, beside the float oracle."""
    config = small_config(4, 2)
    source = RandomSource(config, Quantization.INT8, CUDA, CPU)
    ours = load_hopper_model(
        source, config, kv_blocks=40, kv_bytes=None, progress=lambda _: None, kv_format=KVFormat.INT8
    )
    weights = load_weights(RandomSource(config, Quantization.INT8, CPU, CPU), config, 2 << 30, lambda _: None)
    oracle, exact = (
        build_model(config, weights, kv_blocks=40, kv_bytes=None, block_size=BLOCK_SIZE, kv_format=kv_format)
        for kv_format in (KVFormat.INT8, KVFormat.FLOAT)
    )
    assert isinstance(ours, HopperModel)
    assert isinstance(ours.kv, Int8KVTensors)
    for codes in (*ours.kv.keys, *ours.kv.values):
        codes.fill_(99)
    for scales in (*ours.kv.key_scales, *ours.kv.value_scales):
        scales.fill_(math.nan)
    lengths = [2, 63, 255, 510, 64]
    prompts = random_prompts(VOCAB, [*lengths[:-1], 200], seed=1)
    tables = block_tables(ours, [580, 100, 300, 580, 230])
    whole = [
        SequenceSlice(prompt[:length], 0, table, True)
        for prompt, length, table in zip(prompts, lengths, tables, strict=True)
    ]
    steps = [
        whole[:3],  # as a graph
        whole[3:],
        [SequenceSlice(prompts[4][64:], 64, tables[4], True), SequenceSlice([7], 63, tables[1], True)],
    ]
    starts = [2, 64, 255, 510, 200]
    steps += [
        [SequenceSlice([5 + new], start + new, table, True) for start, table in zip(starts, tables, strict=True)]
        for new in range(4)
    ]
    for number, step in enumerate(steps):
        found, rounded, float_ = (model.forward(step) for model in (ours, oracle, exact))
        errors = {
            "ours to int8": largest_error(found, rounded),
            "ours to float": largest_error(found, float_),
            "int8 to float": largest_error(rounded, float_),
        }
        print(f"step {number}: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
        assert errors["ours to int8"] < MAX_LOGITS_ERROR
        assert errors["ours to float"] < MAX_KV_ERROR
    assert torch.equal(ours.forward(steps[-1]), found)
