"""Decode attention over the paged KV cache: buffers and the launch of attention.cu.

Deterministic, and a row's result is independent of the batch: a sequence is cut at multiples of SPLIT positions.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from worker.engine.kernels.build import SOURCES, Kernel, load_kernels
from worker.engine.kernels.rowwise import Scales

SPLIT = 256
BLOCK_SIZE = 64
HEAD_DIM = 128


class _Scales(ctypes.Structure):
    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("block_stride", ctypes.c_longlong),
        ("head_stride", ctypes.c_longlong),
    )


class _Shape(ctypes.Structure):
    _fields_ = (
        ("num_heads", ctypes.c_int),
        ("num_kv_heads", ctypes.c_int),
        ("max_blocks", ctypes.c_int),
        ("max_splits", ctypes.c_int),
        ("block_stride", ctypes.c_longlong),
        ("position_stride", ctypes.c_longlong),
        ("head_stride", ctypes.c_longlong),
        ("scale", ctypes.c_float),
        ("scales", _Scales),
    )


class DecodeAttention:
    """Attends one new token of each of up to `max_rows` sequences of up to `max_context` positions.

    Args:
        cos, sin: [positions, HEAD_DIM / 2] float32, the rotary tables.

    Invariant: between launches every counter is zero. One object serves one stream.
    """

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        max_rows: int,
        max_context: int,
        cos: Tensor,
        sin: Tensor,
        split: int = SPLIT,
    ) -> None:
        if cos.shape[1] * 2 != HEAD_DIM or num_heads % num_kv_heads or num_heads // num_kv_heads > 8:
            raise ValueError("the kernel takes heads of 128 dimensions, at most 8 query heads per key-value head")
        self._num_heads, self._num_kv_heads, self._split = num_heads, num_kv_heads, split
        self._max_splits = -(-max_context // split)
        device = cos.device
        self._num_sms = torch.cuda.get_device_properties(device).multi_processor_count
        self._partials = torch.empty(max_rows * num_heads * self._max_splits * (HEAD_DIM + 2), device=device)
        self._counters = torch.zeros(max_rows * num_kv_heads, dtype=torch.int32, device=device)
        self._cos, self._sin = cos.contiguous(), sin.contiguous()

    def __call__(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        positions: Tensor,
        block_tables: Tensor,
        out: Tensor,
        *,
        max_context: int,
        scales: Scales | None = None,
        writes_cache: bool = True,
        overlap: bool = False,
    ) -> Tensor:
        """Attend into out [B, H * D] fp16.

        Args:
            x: fp16; with `writes_cache` the projection's output [B, (H + 2 kv heads) * D], which is rotated here and
                whose keys and values are written at `positions`; else rotated queries [B, H * D].
            keys, values: [blocks, BLOCK_SIZE, kv heads, D] fp16, or int8 with `scales`, of any strides with D together.
            positions: [B] int32, of the new token; -1 skips a row and leaves its output as it was.
            block_tables: [B, max_blocks] int32.
            max_context: no position is this large; it sets the grid, so a captured graph holds up to it.
            scales: of an int8 cache's keys and values, each [blocks, kv heads, BLOCK_SIZE] float32.
            overlap: see the package. With `writes_cache`, positions, block tables and the cache are read early.
        """
        rows = x.shape[0]
        group = self._num_heads // self._num_kv_heads
        assert keys.shape[1:] == (BLOCK_SIZE, self._num_kv_heads, HEAD_DIM)
        assert keys.stride() == values.stride()
        assert keys.stride(3) == 1
        assert keys.dtype == values.dtype == (torch.float16 if scales is None else torch.int8)
        assert positions.dtype == block_tables.dtype == torch.int32
        assert x.is_contiguous()
        assert out.is_contiguous()
        assert out.shape == (rows, self._num_heads * HEAD_DIM)
        shape = _Shape(
            self._num_heads,
            self._num_kv_heads,
            block_tables.shape[1],
            self._max_splits,
            keys.stride(0),
            keys.stride(1),
            keys.stride(2),
            math.log2(math.e) / math.sqrt(HEAD_DIM),
            _Scales() if scales is None else _scales_of(*scales, keys),
        )
        tensors = (x, keys, values, positions, block_tables, self._cos, self._sin, self._partials, self._counters, out)
        # With few blocks of threads, each asks for all it will read at once. A tile of codes is half as large.
        at_once = self._num_sms * (1 if scales is None else 2)
        buffers = self._split // BLOCK_SIZE if rows * self._num_kv_heads <= at_once else 2
        _load(x.device.index, Variant(group, self._split, buffers, writes_cache, scales is not None)).launch(
            (self._num_kv_heads, min(-(-max_context // self._split), self._max_splits), rows),
            128,
            (*(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors), shape),
            overlap=overlap,
        )
        return out


@dataclass(frozen=True, slots=True)
class Variant:
    """What attention.cu is compiled for: see there. `has_codes`: the cache is int8."""

    group: int
    split: int
    buffers: int
    writes_cache: bool
    has_codes: bool

    def source(self) -> tuple[dict[str, int], str, int]:
        """Macros, prelude, and the bytes of dynamic shared memory."""
        defines = {"GROUP": self.group, "SPLIT": self.split, "BUFFERS": self.buffers, "FUSED": int(self.writes_cache)}
        files = ("paged.cuh", "kv_codes.cuh", "kv_int8.cuh") if self.has_codes else ("paged.cuh", "kv_half.cuh")
        position_bytes = HEAD_DIM + 4 if self.has_codes else HEAD_DIM * 2
        shared = self.buffers * 2 * BLOCK_SIZE * position_bytes + 128
        return defines, "".join((SOURCES / file).read_text() for file in files), shared


def _scales_of(of_keys: Tensor, of_values: Tensor, keys: Tensor) -> _Scales:
    assert of_keys.shape == of_values.shape == (keys.shape[0], keys.shape[2], BLOCK_SIZE)
    assert of_keys.dtype == of_values.dtype == torch.float32
    assert of_keys.is_contiguous()
    assert of_values.is_contiguous()
    return _Scales(of_keys.data_ptr(), of_values.data_ptr(), of_keys.stride(0), of_keys.stride(1))


@cache
def _load(device_index: int, variant: Variant) -> Kernel:
    defines, prelude, shared = variant.source()
    with torch.cuda.device(device_index):
        return load_kernels("attention.cu", defines, prelude, {"decode_attention": shared})["decode_attention"]
