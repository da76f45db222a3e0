"""Makes bitsandbytes' bytes of a dense weight, the very ones that transformers makes when it loads one."""

from __future__ import annotations

import torch
from torch import Tensor

from worker.engine.bnb import import_bitsandbytes
from worker.engine.config import UnsupportedModel
from worker.engine.weights import Int8Weight, NestedAbsmax, Nf4Weight

NF4_BLOCK_SIZE = 64  # transformers' default


def quantize_int8(dense: Tensor) -> Int8Weight:
    """LLM.int8 bytes of a [N, K] weight, as transformers makes them: from float16, whatever dtype it had."""
    functional = import_bitsandbytes("bitsandbytes.functional")
    codes, row_absmax, _ = functional.int8_vectorwise_quant(dense.to(torch.float16).contiguous())
    return Int8Weight(codes, row_absmax)


def quantize_nf4(dense: Tensor, *, double: bool) -> Nf4Weight:
    """NF4 bytes of a [N, K] weight, as transformers makes them by default; `double` quantizes the absmax values too."""
    functional = import_bitsandbytes("bitsandbytes.functional")
    packed, state = functional.quantize_4bit(
        dense.contiguous(), blocksize=NF4_BLOCK_SIZE, compress_statistics=double, quant_type="nf4"
    )
    absmax: Tensor | NestedAbsmax = state.absmax
    if double:
        absmax = NestedAbsmax(
            codes=state.absmax,
            code_book=state.state2.code,
            group_absmax=state.state2.absmax,
            offset=state.offset,
            group_size=state.state2.blocksize,
        )
    return checked_nf4(Nf4Weight(packed.flatten(), absmax, (dense.shape[0], dense.shape[1]), state.blocksize))


def checked_nf4(weight: Nf4Weight) -> Nf4Weight:
    """The weight. Raises UnsupportedModel if its rows are not whole blocks."""
    if weight.shape[1] % weight.block_size:
        raise UnsupportedModel(f"rows of {weight.shape[1]} weights are not whole NF4 blocks of {weight.block_size}")
    return weight
