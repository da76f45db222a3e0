"""How the weight of a linear layer is stored: dense, int8 or NF4, and what each stands for in floating point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

# The sixteen quantiles of NF4, from bitsandbytes; QLoRA, Dettmers et al. 2023, arXiv:2305.14314, appendix E.
NF4_CODES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """Unquantized: `values` [N, K], any floating dtype."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): outputs and inputs of the layer."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the bytes are."""
        return self.values.device

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """[N, K] in `dtype`; the stored tensor itself when it already has it."""
        return self.values.to(dtype)


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """LLM.int8: `codes` [N, K] int8 and `row_absmax` [N] float32; w = codes * row_absmax / 127.

    In bitsandbytes' files these are `weight` (or `CB`) and `SCB`.
    """

    codes: Tensor
    row_absmax: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): outputs and inputs of the layer."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the bytes are."""
        return self.codes.device

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """[N, K] in `dtype`, computed in float32."""
        return self.codes.float().mul_(self.row_absmax[:, None]).div_(127).to(dtype)


@dataclass(frozen=True, slots=True)
class NestedAbsmax:
    """Absmax values quantized to 8 bits in groups of `group_size` (double quantization).

    absmax[i] = code_book[codes[i]] * group_absmax[i // group_size] + offset; `codes` is [number of blocks] uint8,
    `code_book` [256], `group_absmax` [number of groups] and `offset` [] are float32.
    """

    codes: Tensor
    code_book: Tensor
    group_absmax: Tensor
    offset: Tensor
    group_size: int

    def flat(self) -> Tensor:
        """[number of blocks] float32, bit for bit what bitsandbytes computes."""
        scale = self.group_absmax.repeat_interleave(self.group_size)[: self.codes.numel()]
        return self.code_book[self.codes.int()].mul_(scale).add_(self.offset)


@dataclass(frozen=True, slots=True)
class Nf4Weight:
    """NF4: byte i of `packed` [N*K/2] uint8 holds weight 2i in its high half and 2i+1 in its low half.

    Weights are numbered along rows and share one absmax per `block_size` of them; a row is whole blocks.
    """

    packed: Tensor
    absmax: Tensor | NestedAbsmax
    shape: tuple[int, int]
    block_size: int

    @property
    def device(self) -> torch.device:
        """Where the bytes are."""
        return self.packed.device

    def flat_absmax(self) -> Tensor:
        """[N*K/block_size] float32."""
        return self.absmax.flat() if isinstance(self.absmax, NestedAbsmax) else self.absmax

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """[N, K] in `dtype`, computed in float32."""
        values = _nf4_pairs(self.packed.device)[self.packed.int()].view(-1, self.block_size)
        return values.mul_(self.flat_absmax()[:, None]).view(self.shape).to(dtype)


LinearWeight = DenseWeight | Int8Weight | Nf4Weight


def concatenate_rows(parts: Sequence[LinearWeight]) -> LinearWeight:
    """One weight whose outputs are those of `parts` in order; the quantized bytes are kept.

    Nested absmax values become float32, since each part has its own offset. Raises ValueError if the parts are
    stored in different ways.
    """
    if all(isinstance(part, DenseWeight) for part in parts):
        return DenseWeight(torch.cat([part.values for part in parts if isinstance(part, DenseWeight)]))
    int8 = [part for part in parts if isinstance(part, Int8Weight)]
    if len(int8) == len(parts):
        return Int8Weight(torch.cat([part.codes for part in int8]), torch.cat([part.row_absmax for part in int8]))
    nf4 = [part for part in parts if isinstance(part, Nf4Weight)]
    if len(nf4) != len(parts) or len({part.block_size for part in nf4}) != 1:
        raise ValueError("weights that are stored in different ways cannot be one layer")
    return Nf4Weight(
        packed=torch.cat([part.packed for part in nf4]),
        absmax=torch.cat([part.flat_absmax() for part in nf4]),
        shape=(sum(part.shape[0] for part in nf4), nf4[0].shape[1]),
        block_size=nf4[0].block_size,
    )


@cache
def _nf4_pairs(device: torch.device) -> Tensor:
    """[256, 2] float32: the two codes of every byte."""
    codes = torch.tensor(NF4_CODES, dtype=torch.float32, device=device)
    return torch.stack([codes.repeat_interleave(16), codes.repeat(16)], dim=1)
