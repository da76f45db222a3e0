"""Norm, rotation and gate in Triton, each one kernel where torch queues up to a dozen. float32 within, float16 out."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

GATE_BLOCK = 1024  # outputs of one program
GATE_WARPS, NORM_WARPS, ROTATE_WARPS = 4, 8, 1


@triton.jit
def norm_rows(
    x_ptr: tl.tensor, weight_ptr: tl.tensor, out_ptr: tl.tensor, size: tl.tensor, eps: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """out[t] = x[t] / sqrt(mean(x[t] ** 2) + eps) * weight."""
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, BLOCK)
    is_held = places < size
    x = tl.load(x_ptr + row * size + places, mask=is_held, other=0.0)
    weight = tl.load(weight_ptr + places, mask=is_held, other=0.0)
    scale = tl.rsqrt(tl.sum(x * x, 0) / size + eps)
    tl.store(out_ptr + row * size + places, (x * scale * weight).to(tl.float16), mask=is_held)


@triton.jit(do_not_specialize=["row_stride"])
def rotate_heads(
    heads_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    out_ptr: tl.tensor,
    row_stride: tl.tensor,
    HALF: tl.constexpr,
    DIMS: tl.constexpr,
) -> None:
    """One head of one token: out[i] = in[i] * cos[i] - in[i + HALF] * sin[i], out[i + HALF] the other way round."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    dims = tl.arange(0, DIMS)
    is_held = dims < HALF
    at = heads_ptr + row * row_stride + head * 2 * HALF + dims
    first = tl.load(at, mask=is_held, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=is_held, other=0.0).to(tl.float32)
    cos = tl.load(cos_ptr + row * HALF + dims, mask=is_held, other=0.0)
    sin = tl.load(sin_ptr + row * HALF + dims, mask=is_held, other=0.0)
    to = out_ptr + (row * tl.num_programs(1) + head) * 2 * HALF + dims
    tl.store(to, (first * cos - second * sin).to(tl.float16), mask=is_held)
    tl.store(to + HALF, (second * cos + first * sin).to(tl.float16), mask=is_held)


@triton.jit
def gate_rows(gate_up_ptr: tl.tensor, out_ptr: tl.tensor, size: tl.tensor, BLOCK: tl.constexpr) -> None:
    """out[t, n] = silu(in[t, n]) * in[t, size + n]."""
    row = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_held = places < size
    gate = tl.load(gate_up_ptr + row * 2 * size + places, mask=is_held, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + (row * 2 + 1) * size + places, mask=is_held, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * size + places, (gate / (1 + tl.exp(-gate)) * up).to(tl.float16), mask=is_held)


class TritonRowwise:
    """Implements worker.engine.rowwise.Rowwise, for float16 products."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """As Rowwise has it; float16."""
        rows, size = x.shape
        assert x.dtype == weight.dtype == torch.float32
        assert x.is_contiguous()
        out = torch.empty(rows, size, dtype=torch.float16, device=x.device)
        if rows:
            with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]  # Triton launches on the current device
                norm_rows[rows,](x, weight, out, size, eps, BLOCK=triton.next_power_of_2(size), num_warps=NORM_WARPS)
        return out

    def rotate(self, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """As Rowwise has it, of float16 whose heads lie side by side; float16."""
        rows, num_heads, head_dim = heads.shape
        assert heads.dtype == torch.float16
        assert heads.stride()[1:] == (head_dim, 1)
        assert cos.is_contiguous()
        assert sin.is_contiguous()
        out = torch.empty(rows, num_heads, head_dim, dtype=torch.float16, device=heads.device)
        half = head_dim // 2
        with torch.cuda.device_of(heads):  # type: ignore[no-untyped-call]  # as above
            rotate_heads[rows, num_heads](
                heads,
                cos,
                sin,
                out,
                heads.stride(0),
                HALF=half,
                DIMS=triton.next_power_of_2(half),
                num_warps=ROTATE_WARPS,
            )
        return out

    def gate(self, gate_up: Tensor) -> Tensor:
        """As Rowwise has it, of float16; float16."""
        rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        assert gate_up.dtype == torch.float16
        assert gate_up.is_contiguous()
        out = gate_up.new_empty(rows, size)
        grid = (rows, triton.cdiv(size, GATE_BLOCK))
        with torch.cuda.device_of(gate_up):  # type: ignore[no-untyped-call]  # as above
            gate_rows[grid](gate_up, out, size, BLOCK=GATE_BLOCK, num_warps=GATE_WARPS)
        return out
