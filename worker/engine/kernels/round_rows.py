"""Activations in int8, for products on the int8 tensor cores: how they lie, and the launch of round_rows.cu."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from worker.engine.kernels.build import Kernel, load_kernels

_THREADS = 256  # round_rows.cu, THREADS
_WHOLE_ROWS = 128  # gemm_wide.cu, BATCH: it reads the scales of whole tiles


@dataclass(frozen=True, slots=True)
class RoundedRows:
    """M rows of K numbers, each its code times its row's scale.

    Attributes:
        codes: [M, K] int8, each 16 inputs in the order that round_rows.cu says.
        scale: float32, largest number of a row / 127; M of them, and room for whole tiles of 128.
    """

    codes: Tensor
    scale: Tensor

    @classmethod
    def empty(cls, rows: int, columns: int, device: torch.device) -> RoundedRows:
        """Room for rows, undefined."""
        scale = torch.empty(-(-rows // _WHOLE_ROWS) * _WHOLE_ROWS, device=device)
        return cls(torch.empty(rows, columns, dtype=torch.int8, device=device), scale)


def round_rows(x: Tensor, out: RoundedRows, *, overlap: bool = False) -> RoundedRows:
    """Round [M, K] fp16 to int8, each row by itself. A row with a number that is not finite has no finite scale."""
    assert x.dtype == torch.float16
    assert x.is_contiguous()
    assert x.shape == out.codes.shape
    assert x.shape[1] % 16 == 0
    pointers = tuple(ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, out.codes, out.scale))
    _load(x.device.index, x.shape[1]).launch((x.shape[0], 1, 1), _THREADS, pointers, overlap=overlap)
    return out


@cache
def _load(device_index: int, columns: int) -> Kernel:
    with torch.cuda.device(device_index):
        return load_kernels("round_rows.cu", {"COLUMNS": columns}, "", {"round_rows": 0})["round_rows"]
