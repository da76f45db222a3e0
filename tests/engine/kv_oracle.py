"""What an int8 KV cache must hold and what attention over it must give, for the kernels that read and write codes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from worker.engine.config import LlamaConfig, Quantization
from worker.engine.kernels.attention import BLOCK_SIZE
from worker.engine.kv_tensors import Int8KVTensors

CPU = torch.device("cpu")
MAX_CONTEXT = 2048
VOCAB, MODEL_CONTEXT = 1000, 600
MAX_ERROR = 2e-3  # relative, of a row: as of the cache in fp16; the codes themselves are the reference's
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


def scattered_cache(
    num_kv_heads: int, positions: Tensor, max_context: int, generator: torch.Generator
) -> tuple[Int8KVTensors, Tensor]:
    """Random codes in blocks scattered by tables [B, blocks], values of widely different scales; NaN past the ends."""
    rows, width, device = len(positions), max_context // BLOCK_SIZE, positions.device
    kv = empty_cache(num_kv_heads, rows * width, device, torch.float64)
    tables = torch.randperm(rows * width, device=device, generator=generator).int().view(rows, width)
    for codes in (kv.keys[0], kv.values[0]):
        codes.copy_(torch.randint(-127, 128, codes.shape, device=device, dtype=torch.int8, generator=generator))
    key_scales, value_scales = kv.scales(0)
    key_scales.uniform_(0.5 / 64, 1.5 / 64, generator=generator)
    value_scales.normal_(0, 2.0, generator=generator).exp_().div_(64)
    is_past = torch.arange(max_context, device=device) >= positions[:, None]
    past = is_past.view(rows, width, BLOCK_SIZE)
    by_block = torch.zeros(rows * width, BLOCK_SIZE, dtype=torch.bool, device=device)
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
    weights = torch.einsum("hd,shd->hs", query.to(keys.device).double(), keys).div(128**0.5).softmax(dim=-1)
    return torch.einsum("hs,shd->hd", weights, values).flatten()


def relative_error(out: Tensor, reference: Tensor) -> float:
    """Norm of the difference over norm of the reference; NaN where out has one."""
    return float((out.double() - reference).norm() / reference.norm())


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    """NaN equals itself."""
    return torch.equal(ours.view(torch.int32), theirs.view(torch.int32))
