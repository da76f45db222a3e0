"""Launches of rowwise.cu: embedding, add + RMSNorm, rotary embedding + cache write, reading a cache of codes."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from worker.engine.kernels.build import SOURCES, Argument, Kernel, load_kernels

_NAMES = ("add_rms_norm", "rotate_and_write", "rotate_and_encode", "gather_codes", "embed")

Scales = tuple[Tensor, Tensor]  # of the keys and of the values of an int8 cache


def embed(token_ids: Tensor, chosen: Tensor, embedding: Tensor, residual: Tensor) -> Tensor:
    """The rows of [V, hidden] fp16 to residual [M, hidden] float32.

    Args:
        token_ids: [M] int32; -1 - r stands for chosen[r].
        chosen: int32.
    """
    hidden = residual.shape[1]
    arguments = tuple(map(_pointer, (token_ids, chosen, embedding, residual)))
    _kernel(residual, "embed", hidden).launch((residual.shape[0], 1, 1), hidden // 8, arguments, overlap=False)
    return residual


def add_rms_norm(
    residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float, out: Tensor, *, overlap: bool = False
) -> Tensor:
    """residual [M, hidden] float32 += delta [M, hidden] fp16 in place; out [M, hidden] fp16 = RMSNorm of it."""
    hidden = residual.shape[1]
    if hidden % 256 or hidden > 8192:
        raise ValueError(f"the kernel takes rows of a multiple of 256 up to 8192 numbers, not {hidden}")
    arguments = (_pointer(residual), _pointer(delta), _pointer(weight), _pointer(out), ctypes.c_float(eps))
    _kernel(residual, "add_rms_norm", hidden).launch((residual.shape[0], 1, 1), hidden // 8, arguments, overlap=overlap)
    return out


def rotate_and_write(
    qkv: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    scales: Scales | None = None,
    overlap: bool = False,
) -> None:
    """Rotate [T, (H + 2 kv heads) * 128] fp16: queries to [T, H * 128], keys and values to the cache.

    Args:
        keys, values: [blocks, block size, kv heads, 128] fp16, or int8 with `scales`, of any strides.
        positions: [T] int32; -1 skips a row.
        slots: [T] int64, block * block size + offset.
        scales: each [blocks, kv heads, block size] float32.
    """
    name = "rotate_and_write" if scales is None else "rotate_and_encode"
    arguments: tuple[Argument, ...] = (
        *map(_pointer, (qkv, queries, keys, values, *(scales or ()), positions, slots, cos, sin)),
        ctypes.c_int(queries.shape[1] // 128),
        *_layout(keys, values, scales),
    )
    _kernel(qkv, name).launch((qkv.shape[0], 1, 1), 256, arguments, overlap=overlap)


def gather_codes(
    keys: Tensor, values: Tensor, scales: Scales, slots: Tensor, *, overlap: bool = False
) -> tuple[Tensor, Tensor]:
    """The numbers of an int8 cache at slots [K] int32, each [K, kv heads, 128] fp16; else see `rotate_and_write`."""
    assert slots.dtype == torch.int32
    num_kv_heads = keys.shape[2]
    found = [torch.empty(len(slots), num_kv_heads, 128, dtype=torch.float16, device=keys.device) for _ in range(2)]
    arguments = (*map(_pointer, (keys, values, *scales, slots, *found)), *_layout(keys, values, scales))
    threads = min(256, num_kv_heads * 8)
    _kernel(keys, "gather_codes").launch((len(slots), 2, 1), threads, arguments, overlap=overlap)
    return found[0], found[1]


def _layout(keys: Tensor, values: Tensor, scales: Scales | None) -> tuple[Argument, ...]:
    """What a kernel is told of where a cache's numbers lie."""
    _, block_size, num_kv_heads, _ = keys.shape
    assert keys.stride() == values.stride()
    assert keys.dtype == values.dtype == (torch.float16 if scales is None else torch.int8)
    for scale in scales or ():
        assert scale.shape == (keys.shape[0], num_kv_heads, block_size)
    strides = (ctypes.c_int64(keys.stride(axis)) for axis in range(3))
    return ctypes.c_int(num_kv_heads), ctypes.c_int(block_size), *strides


def source_of(hidden: int) -> tuple[dict[str, int], str]:
    """Macros and prelude of rowwise.cu for a model's hidden size."""
    return {"HIDDEN": hidden}, (SOURCES / "kv_codes.cuh").read_text()


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    if tensor is None:
        return ctypes.c_void_p(0)
    assert tensor.is_contiguous() or tensor.ndim == 4, "only the cache may have strides"
    return ctypes.c_void_p(tensor.data_ptr())


def _kernel(where: Tensor, name: str, hidden: int = 4096) -> Kernel:
    return _load(where.device.index, hidden)[name]


@cache
def _load(device_index: int, hidden: int) -> dict[str, Kernel]:
    with torch.cuda.device(device_index):
        return load_kernels("rowwise.cu", *source_of(hidden), dict.fromkeys(_NAMES, 0))
