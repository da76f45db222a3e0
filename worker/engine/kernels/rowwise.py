"""Launches of rowwise.cu: add + RMSNorm, rotary embedding + cache write, SiLU x up, greedy choice, dequantization."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from worker.engine.kernels.build import Argument, Kernel, load_kernels
from worker.engine.kernels.gemm import PackedWeight
from worker.engine.weights import NF4_CODES

_NAMES = ("add_rms_norm", "rotate_and_write", "silu_multiply", "choose_greedy")


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
    overlap: bool = False,
) -> None:
    """Rotate [T, (H + 2 kv heads) * 128] fp16: queries to [T, H * 128], keys and values to the cache.

    Args:
        keys, values: [blocks, block size, kv heads, 128] fp16, of any strides.
        positions: [T] int32; -1 skips a row.
        slots: [T] int64, block * block size + offset.
    """
    num_kv_heads = keys.shape[2]
    arguments: tuple[Argument, ...] = (
        *map(_pointer, (qkv, queries, keys, values, positions, slots, cos, sin)),
        ctypes.c_int(queries.shape[1] // 128),
        ctypes.c_int(num_kv_heads),
        ctypes.c_int(keys.shape[1]),
        *(ctypes.c_int64(keys.stride(axis)) for axis in range(3)),
    )
    _kernel(qkv, "rotate_and_write").launch((qkv.shape[0], 1, 1), 256, arguments, overlap=overlap)


def silu_multiply(gate_up: Tensor, out: Tensor, *, overlap: bool = False) -> Tensor:
    """[T, 2 N] fp16, gate before up, to out [T, N] fp16; N is a multiple of 8."""
    rows, width = out.shape
    arguments = (_pointer(gate_up), _pointer(out), ctypes.c_int(width))
    _kernel(out, "silu_multiply").launch((rows, -(-width // 2048), 1), 256, arguments, overlap=overlap)
    return out


def choose_greedy(
    logits: Tensor, token_ids: Tensor, logprobs: Tensor, is_valid: Tensor, *, overlap: bool = False
) -> None:
    """The likeliest token of each row of [B, V] fp16, the first of equals; V is a multiple of 8.

    Args:
        token_ids: [B] int32, written.
        logprobs: [B] float32, written: log softmax of the token.
        is_valid: [B] int32, written: 0 where the row had a NaN, +inf or no finite logit; then the others mean nothing.
    """
    tensors = (logits, token_ids, logprobs, is_valid)
    arguments: tuple[Argument, ...] = (*map(_pointer, tensors), ctypes.c_int(logits.shape[1]))
    _kernel(logits, "choose_greedy").launch((logits.shape[0], 1, 1), 1024, arguments, overlap=overlap)


def dequantize(weight: PackedWeight, out: Tensor, *, overlap: bool = False) -> Tensor:
    """A packed weight as the layer has it, to out [N, K] fp16: rows [gate; up] again where it was paired."""
    rows, columns = weight.shape
    chunks = -(-columns // 128)
    arguments: tuple[Argument, ...] = (
        *map(_pointer, (weight.units, weight.row_scale, out)),
        *(ctypes.c_int(number) for number in (rows, columns, chunks, rows // 2 if weight.is_gate_up else 0)),
    )
    kernel = _kernel(out, "dequantize", bits=weight.bits)
    kernel.launch((weight.units.shape[0], 1, 1), 256, arguments, overlap=overlap)
    return out


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    if tensor is None:
        return ctypes.c_void_p(0)
    assert tensor.is_contiguous() or tensor.ndim == 4, "only the cache may have strides"
    return ctypes.c_void_p(tensor.data_ptr())


def _kernel(where: Tensor, name: str, hidden: int = 4096, bits: int = 0) -> Kernel:
    return _load(where.device.index, hidden, bits)[name]


@cache
def _load(device_index: int, hidden: int, bits: int) -> dict[str, Kernel]:
    prelude = f"__constant__ float NF4_FLOAT[16] = {{{', '.join(f'{code!r}f' for code in NF4_CODES)}}};\n"
    names = (*_NAMES, "dequantize") if bits else _NAMES
    with torch.cuda.device(device_index):
        defines = {"HIDDEN": hidden, "FORMAT": bits}
        return load_kernels("rowwise.cu", defines, prelude, dict.fromkeys(names, 0))
