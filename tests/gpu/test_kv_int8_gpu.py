"""An int8 KV cache on the Hopper kernels: codes to the bit, attention against float64 over them, and whole models."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.engine.oracle import block_tables, random_prompts
from tests.engine.random_source import RandomSource
from worker.engine.batch import SequenceSlice
from worker.engine.config import KVFormat, LlamaConfig, Quantization
from worker.engine.hopper_model import HopperModel
from worker.engine.kernels.attention import BLOCK_SIZE, DecodeAttention
from worker.engine.kernels.rowwise import gather_codes, rotate_and_write
from worker.engine.kv_tensors import Int8KVTensors
from worker.engine.loader import build_model, load_hopper_model, load_weights

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
MAX_CONTEXT = 2048
POSITIONS = [0, 62, 63, 64, 254, 255, 256, 999, 2047, -1, 15, 16]
MAX_ERROR = 2e-3  # relative, of a row: as of the cache in fp16; the codes themselves are the reference's
VOCAB, MODEL_CONTEXT = 1000, 600
# Of a row's logits, relative. fp16 activations turn some codes round to their neighbours, so that ours and the oracle's
# int8 caches differ by about as much as int8 from float.
MAX_LOGITS_ERROR, MAX_KV_ERROR = 2.5e-2, 4e-2
NOTHING_FRESH = torch.tensor([], dtype=torch.int64)


def small_config(num_heads: int, num_kv_heads: int) -> LlamaConfig:
    """Three layers."""
    return LlamaConfig(
        hidden_size=num_heads * 128,
        intermediate_size=1408,
        num_layers=3,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=128,
        vocab_size=VOCAB,
        max_position_embeddings=MODEL_CONTEXT,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        dtype="float16",
        saved_quantization=Quantization.NONE,
    )


def empty_cache(num_kv_heads: int, num_blocks: int, device: torch.device, dtype: torch.dtype) -> Int8KVTensors:
    """Of zeros."""
    config = small_config(num_kv_heads, num_kv_heads)
    return Int8KVTensors(config, num_blocks=num_blocks, block_size=BLOCK_SIZE, dtype=dtype, device=device)


def rotary_tables() -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [MAX_CONTEXT, 64], on the CPU."""
    angles = torch.outer(torch.arange(MAX_CONTEXT).float(), 10000.0 ** (-torch.arange(64) / 64))
    return angles.cos(), angles.sin()


def rotated(heads: Tensor, positions: Tensor) -> Tensor:
    """[B, heads, 128] rotated by position, in float32 on the CPU, each product and sum rounded by itself."""
    first, second = heads.cpu().float().chunk(2, dim=-1)
    cos, sin = (table[positions.cpu().long()][:, None] for table in rotary_tables())
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def written(qkv: Tensor, num_heads: int, num_kv_heads: int, positions: Tensor) -> Int8KVTensors:
    """What Int8KVTensors makes on the CPU of each row's key and value, each at the first position of its block."""
    heads = qkv.view(len(qkv), -1, 128)
    kv = empty_cache(num_kv_heads, len(qkv), CPU, torch.float32)
    key = rotated(heads[:, num_heads : num_heads + num_kv_heads], positions)
    value = heads[:, num_heads + num_kv_heads :].cpu().float()
    kv.write(0, key, value, torch.arange(len(qkv)) * BLOCK_SIZE, NOTHING_FRESH)
    return kv


def assert_same_codes(kv: Int8KVTensors, slots: Tensor, expected: Int8KVTensors) -> None:
    """To the bit: codes and scales at `slots` are those of the blocks' first positions of `expected`."""
    blocks, offsets = slots.cpu() // BLOCK_SIZE, slots.cpu() % BLOCK_SIZE
    for ours, theirs in ((kv.keys, expected.keys), (kv.values, expected.values)):
        off_by = (ours[0].cpu()[blocks, offsets].int() - theirs[0][:, 0].int()).abs()
        assert not off_by.any(), f"{int((off_by > 0).sum())} of {off_by.numel()} codes, by {int(off_by.max())} at most"
    for our_scales, their_scales in zip(kv.scales(0), expected.scales(0), strict=True):
        assert torch.equal(our_scales.cpu()[blocks, :, offsets], their_scales[:, :, 0])


def scattered_cache(num_kv_heads: int, positions: Tensor, generator: torch.Generator) -> tuple[Int8KVTensors, Tensor]:
    """Random codes in blocks scattered by tables [B, blocks], values of widely different scales; NaN past the ends."""
    rows, width = len(positions), MAX_CONTEXT // BLOCK_SIZE
    kv = empty_cache(num_kv_heads, rows * width, CUDA, torch.float64)
    tables = torch.randperm(rows * width, device=CUDA, generator=generator).int().view(rows, width)
    for codes in (kv.keys[0], kv.values[0]):
        codes.copy_(torch.randint(-127, 128, codes.shape, device=CUDA, dtype=torch.int8, generator=generator))
    key_scales, value_scales = kv.scales(0)
    key_scales.uniform_(0.5 / 64, 1.5 / 64, generator=generator)
    value_scales.normal_(0, 2.0, generator=generator).exp_().div_(64)
    is_past = torch.arange(MAX_CONTEXT, device=CUDA) >= positions[:, None]
    past = is_past.view(rows, width, BLOCK_SIZE)
    by_block = torch.zeros(rows * width, BLOCK_SIZE, dtype=torch.bool, device=CUDA)
    by_block[tables.flatten().long()] = past.flatten(0, 1)
    for codes, scales in zip((kv.keys[0], kv.values[0]), kv.scales(0), strict=True):
        codes[by_block] = 99
        scales.masked_fill_(by_block[:, None], math.nan)
    return kv, tables


def attention_of(query: Tensor, kv: Int8KVTensors, table: Tensor, num_keys: int) -> Tensor:
    """[H, 128] query over the cache's numbers, in float64."""
    keys, values = (
        each.flatten(0, 1)[:num_keys].repeat_interleave(len(query) // kv.num_kv_heads, dim=1)
        for each in kv.read(0, table.long())
    )
    weights = torch.einsum("hd,shd->hs", query.to(CUDA).double(), keys).div(128**0.5).softmax(dim=-1)
    return torch.einsum("hs,shd->hd", weights, values).flatten()


def relative_error(out: Tensor, reference: Tensor) -> float:
    """Norm of the difference over norm of the reference; NaN where out has one."""
    return float((out.double() - reference).norm() / reference.norm())


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    """NaN equals itself."""
    return torch.equal(ours.view(torch.int32), theirs.view(torch.int32))


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "fused"), [(32, 32, True), (64, 8, True), (8, 1, True), (64, 8, False)]
)
def test_decode_attention_over_codes(num_heads: int, num_kv_heads: int, fused: bool) -> None:
    """The new position's codes are the CPU's, nothing else is written, and the result is softmax over the codes."""
    generator = torch.Generator(CUDA).manual_seed(num_heads)
    positions = torch.tensor(POSITIONS * (3 if num_kv_heads == 8 else 1), device=CUDA).int()  # few and many blocks
    rows, heads = len(positions), num_heads + 2 * num_kv_heads
    kv, tables = scattered_cache(num_kv_heads, positions, generator)
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
    kv, tables = scattered_cache(num_heads, positions, generator)
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
