"""Products of fp16 activations with bitsandbytes' own int8 and NF4 bytes, in Triton: for GPUs that gemm.cu is not for.

An int8 weight is exact in fp16 and scaled after the sums; an NF4 weight is rounded to the very fp16 number that
bitsandbytes dequantizes it to. Deterministic: where the inputs of an output are split among programs, a second kernel
adds their sums in order. How they are split depends on the weight and the GPU alone, never on the batch.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.engine.weights import NF4_CODES, Int8Weight, Nf4Weight

TILE_SIZES = (16, 32, 64)  # rows of x that one program multiplies; a tensor core takes no fewer than 16
MAX_ROWS = 256  # beyond, a weight is decoded for each tile too often
BLOCK_OUTPUTS = 64
JOIN_BLOCK = 1024
NUM_WARPS = 4
NUM_STAGES = 3


@triton.jit(do_not_specialize=["num_rows", "steps_per_split"])
def int8_product(
    x_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    out_ptr: tl.tensor,
    num_rows: tl.tensor,
    num_outputs: tl.tensor,
    num_inputs: tl.tensor,
    steps_per_split: tl.tensor,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """out[split, m, n] = scale[n] * sum of codes[n, k] * x[m, k] over the inputs k of one split."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    outputs = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(2)
    inputs = tl.arange(0, BLOCK_K)
    held = tl.minimum(outputs, num_outputs - 1).to(tl.int64)  # past the end the last row is read again
    codes_ptrs = codes_ptr + held[:, None] * num_inputs + inputs[None, :]
    x_ptrs = x_ptr + rows[None, :] * num_inputs + inputs[:, None]
    is_row = rows[None, :] < num_rows
    sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    first = split * steps_per_split
    for step in range(first, tl.minimum(first + steps_per_split, num_inputs // BLOCK_K)):
        codes = tl.load(codes_ptrs + step * BLOCK_K)
        x = tl.load(x_ptrs + step * BLOCK_K, mask=is_row, other=0.0)
        # The fp16 number 1152 + code by its bits: a conversion of integers has a quarter of the rate.
        weight = (codes.to(tl.int16) + 0x6480).to(tl.float16, bitcast=True) - 1152.0
        sums = tl.dot(weight, x, sums)
    sums *= tl.load(scale_ptr + held)[:, None]
    out_ptrs = out_ptr + (split * num_rows + rows[None, :]) * num_outputs + outputs[:, None]
    tl.store(out_ptrs, sums.to(out_ptr.dtype.element_ty), mask=is_row & (outputs[:, None] < num_outputs))


@triton.jit(do_not_specialize=["num_rows", "steps_per_split"])
def nf4_product(
    x_ptr: tl.tensor,
    packed_ptr: tl.tensor,
    absmax_ptr: tl.tensor,
    table_ptr: tl.tensor,
    out_ptr: tl.tensor,
    num_rows: tl.tensor,
    num_outputs: tl.tensor,
    num_inputs: tl.tensor,
    steps_per_split: tl.tensor,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """out[split, m, n] = sum of table[code[n, k]] * absmax[n, k // 64] * x[m, k] over the inputs k of one split.

    A byte holds two neighbours along k. The even inputs and the odd ones are multiplied apart, so that no weight has to
    move to another place than its byte's.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    outputs = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(2)
    held = tl.minimum(outputs, num_outputs - 1).to(tl.int64)
    packed_ptrs = packed_ptr + held[:, None] * (num_inputs // 2) + tl.arange(0, BLOCK_K // 2)[None, :]
    absmax_ptrs = absmax_ptr + held[:, None] * (num_inputs // 64) + tl.arange(0, BLOCK_K // 64)[None, :]
    x_ptrs = x_ptr + rows[:, None] * num_inputs + tl.arange(0, BLOCK_K)[None, :]
    is_row = rows < num_rows
    table = tl.broadcast_to(tl.load(table_ptr + tl.arange(0, 16))[None, :], [BLOCK_N, 16])
    sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    first = split * steps_per_split
    for step in range(first, tl.minimum(first + steps_per_split, num_inputs // BLOCK_K)):
        packed = tl.load(packed_ptrs + step * (BLOCK_K // 2))
        absmax = tl.load(absmax_ptrs + step * (BLOCK_K // 64))
        spread = tl.broadcast_to(absmax[:, :, None], [BLOCK_N, BLOCK_K // 64, 32])
        scale = tl.reshape(spread, [BLOCK_N, BLOCK_K // 2])
        even = (tl.gather(table, (packed >> 4).to(tl.int32), 1) * scale).to(tl.float16)
        odd = (tl.gather(table, (packed & 15).to(tl.int32), 1) * scale).to(tl.float16)
        x = tl.load(x_ptrs + step * BLOCK_K, mask=is_row[:, None], other=0.0)
        x_even, x_odd = tl.split(tl.reshape(x, [BLOCK_M, BLOCK_K // 2, 2]))
        sums = tl.dot(even, tl.trans(x_even), sums)
        sums = tl.dot(odd, tl.trans(x_odd), sums)
    out_ptrs = out_ptr + (split * num_rows + rows[None, :]) * num_outputs + outputs[:, None]
    is_output = is_row[None, :] & (outputs[:, None] < num_outputs)
    tl.store(out_ptrs, sums.to(out_ptr.dtype.element_ty), mask=is_output)


@triton.jit(do_not_specialize=["num_splits"])
def join_splits(
    sums_ptr: tl.tensor, out_ptr: tl.tensor, size: tl.tensor, num_splits: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """out[i] = sums[0, i] + sums[1, i] + ..., added in this order in float32."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for split in range(num_splits):
        total += tl.load(sums_ptr + split * size + places, mask=places < size, other=0.0)
    tl.store(out_ptr + places, total.to(out_ptr.dtype.element_ty), mask=places < size)


def takes(weight: Int8Weight | Nf4Weight) -> bool:
    """Whether the kernels read this weight: inputs in whole blocks of 64, NF4's absmax for as many."""
    return weight.shape[1] % 64 == 0 and (isinstance(weight, Int8Weight) or weight.block_size == 64)


def block_inputs(num_inputs: int) -> int:
    """BLOCK_K for rows of so many inputs, which are whole blocks of 64."""
    return 128 if num_inputs % 128 == 0 else 64


class TritonProduct:
    """y = x @ w.T for one weight that the kernels take, on its own bytes; only nested absmax values are written out.

    Args:
        num_multiprocessors: of the GPU; inputs are split until there are two programs for each, where there is enough
            to split.
    """

    def __init__(self, weight: Int8Weight | Nf4Weight, num_multiprocessors: int) -> None:
        self.shape = weight.shape
        if isinstance(weight, Int8Weight):
            self._kernel = int8_product
            self._weight: tuple[Tensor, ...] = (weight.codes, weight.row_absmax.float() / 127)
        else:
            self._kernel = nf4_product
            self._weight = (weight.packed, weight.flat_absmax(), _nf4_table(weight.device))
        self._block_inputs = block_inputs(weight.shape[1])
        num_steps = weight.shape[1] // self._block_inputs
        wanted = -(-2 * num_multiprocessors // triton.cdiv(weight.shape[0], BLOCK_OUTPUTS))
        self._steps_per_split = -(-num_steps // max(1, min(wanted, num_steps // 4)))
        self.num_splits = -(-num_steps // self._steps_per_split)

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply [M, K] into [M, N], both fp16 and contiguous; M is 1 to MAX_ROWS."""
        num_rows = x.shape[0]
        assert 0 < num_rows <= MAX_ROWS
        assert x.dtype == torch.float16
        assert x.is_contiguous()
        assert x.shape[1] == self.shape[1]
        out = x.new_empty(num_rows, self.shape[0])
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]  # Triton launches on the current device
            if self.num_splits == 1:
                self._launch(x, out)
            else:
                sums = torch.empty(self.num_splits, *out.shape, device=x.device)
                self._launch(x, sums)
                grid = (triton.cdiv(out.numel(), JOIN_BLOCK),)
                join_splits[grid](sums, out, out.numel(), self.num_splits, BLOCK=JOIN_BLOCK)
        return out

    def _launch(self, x: Tensor, out: Tensor) -> None:
        num_rows, tile = x.shape[0], tile_size(x.shape[0])
        grid = (triton.cdiv(num_rows, tile), triton.cdiv(self.shape[0], BLOCK_OUTPUTS), self.num_splits)
        self._kernel[grid](
            x,
            *self._weight,
            out,
            num_rows,
            *self.shape,
            self._steps_per_split,
            BLOCK_N=BLOCK_OUTPUTS,
            BLOCK_M=tile,
            BLOCK_K=self._block_inputs,
            num_warps=NUM_WARPS,
            num_stages=NUM_STAGES,
        )


def tile_size(num_rows: int) -> int:
    """BLOCK_M for so many rows: the smallest that holds them, else the largest."""
    return next((size for size in TILE_SIZES if size >= num_rows), TILE_SIZES[-1])


@cache
def _nf4_table(device: torch.device) -> Tensor:
    return torch.tensor(NF4_CODES, dtype=torch.float32, device=device)
