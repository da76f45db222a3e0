"""Linear layers over stored weights: one way to multiply per device and storage format.

On the CPU the result is exact in this sense: a row of the output has the same bits whatever other rows are in the batch
and wherever it stands among them. Every product is one matrix multiply of the same shape, ROW_TILE rows, so that the
library always takes the same path, and in a product of one shape a row's sums do not depend on the row's place
(tests/engine/test_model_linear.py holds us to it).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.engine.bnb import import_bitsandbytes
from worker.engine.weights import NF4_CODES, DenseWeight, Int8Weight, LinearWeight, Nf4Weight

# Rows of one product on the CPU. Fewer make one stream faster, more make long prompts faster: on one core, hidden
# size 256, 16 rows cost 1.5 times as much as 8, and per row 1.3 times as much as 128.
ROW_TILE = 16


class Linear(Protocol):
    """y = x @ w.T without bias."""

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply [T, K] of any floating dtype into [T, N] of the layer's activation dtype."""
        ...


class ResidentBudget:
    """How many bytes of dequantized weights may still stay in memory."""

    def __init__(self, max_bytes: int) -> None:
        self.left_bytes = max_bytes

    def take(self, wanted_bytes: int) -> bool:
        """Reserve `wanted_bytes` if that many are left."""
        fits = wanted_bytes <= self.left_bytes
        if fits:
            self.left_bytes -= wanted_bytes
        return fits


def make_linear(weight: LinearWeight, resident: ResidentBudget) -> Linear:
    """The layer that multiplies by `weight`, on the device where that is.

    `resident` bounds the float32 copies that CPU layers keep; past it they dequantize at every call, to the same bits.
    """
    if weight.device.type == "cpu":
        return TiledLinear(weight, keep=resident.take(4 * weight.shape[0] * weight.shape[1]))
    match weight:
        case DenseWeight():
            return HalfLinear(weight)
        case Int8Weight():
            return Int8Linear(weight)
        case Nf4Weight():
            return Nf4Linear(weight)


class TiledLinear:
    """CPU, any format: float32 products of ROW_TILE rows, the last one padded with zeros."""

    def __init__(self, weight: LinearWeight, *, keep: bool) -> None:
        self._weight = weight
        self._kept = weight.dequantize(torch.float32).contiguous() if keep else None

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply [T, K] into [T, N] float32."""
        weight = self._weight.dequantize(torch.float32).contiguous() if self._kept is None else self._kept
        num_rows = x.shape[0]
        padding = -num_rows % ROW_TILE
        tiles = F.pad(x.float(), (0, 0, 0, padding)).contiguous()
        out = torch.empty(num_rows + padding, weight.shape[0])
        for first in range(0, num_rows, ROW_TILE):
            torch.mm(tiles[first : first + ROW_TILE], weight.t(), out=out[first : first + ROW_TILE])
        return out[:num_rows]


class HalfLinear:
    """GPU, unquantized: float16 by cuBLAS."""

    def __init__(self, weight: DenseWeight) -> None:
        self._weight = weight.dequantize(torch.float16)

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply [T, K] into [T, N] float16."""
        return F.linear(x.half(), self._weight)


class Int8Linear:
    """GPU, int8 weights and float16 activations: the weight is dequantized for each call, and no copy of it is kept."""

    def __init__(self, weight: Int8Weight) -> None:
        self._codes = weight.codes
        self._scale = (weight.row_absmax / 127)[:, None]

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply [T, K] into [T, N] float16."""
        dense = torch.empty(self._codes.shape, dtype=torch.float16, device=self._codes.device)
        torch.mul(self._codes, self._scale, out=dense)  # computed in float32, rounded once
        return F.linear(x.half(), dense)


class Nf4Linear:
    """GPU, NF4 weights and float16 activations: bitsandbytes' own operator on the stored bytes."""

    def __init__(self, weight: Nf4Weight) -> None:
        self._multiply = import_bitsandbytes().matmul_4bit
        self._packed = weight.packed[:, None]
        self._state = import_bitsandbytes("bitsandbytes.functional").QuantState(
            absmax=weight.flat_absmax(),
            shape=torch.Size(weight.shape),
            code=torch.tensor(NF4_CODES, device=weight.packed.device),
            blocksize=weight.block_size,
            quant_type="nf4",
            dtype=torch.float16,
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply [T, K] into [T, N] float16."""
        product: Tensor = self._multiply(x.half(), self._packed, quant_state=self._state)
        return product
