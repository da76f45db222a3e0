"""How a LlamaModel multiplies and attends: chosen once for its device, when it is loaded, and said in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from worker.engine.attention import Attention, make_attention
from worker.engine.config import KVFormat, LlamaConfig, Quantization
from worker.engine.kv_tensors import KVCache
from worker.engine.linear import Linear, ResidentBudget, make_linear
from worker.engine.rowwise import PlainRowwise, Rowwise
from worker.engine.weights import LinearWeight

FIRST_CAPABILITY = 8  # Ampere: the oldest whose tensor cores the Triton kernels are compiled for in the tests

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Operators:
    """What makes the layers and the attention of a LlamaModel; `name` is whose kernels they run.

    Attributes:
        rowwise, captures: see LlamaModel.
    """

    name: str
    make_linear: Callable[[LinearWeight, ResidentBudget], Linear]
    make_attention: Callable[[KVCache, torch.device], Attention]
    rowwise: Rowwise = field(default_factory=PlainRowwise)
    captures: bool = False


PLAIN = Operators("torch", make_linear, make_attention)


def choose_operators(
    config: LlamaConfig, quantization: Quantization, kv_format: KVFormat, device: torch.device, block_size: int
) -> Operators:
    """Triton's on a GPU from Ampere on, if they run there; else torch's and bitsandbytes'.

    Args:
        quantization: how the weights shall be stored.
        kv_format: what the KV cache shall be held in.
        block_size: positions in one block of the KV cache.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= FIRST_CAPABILITY:
        return try_triton(config, quantization, kv_format, device, block_size)
    return PLAIN


def try_triton(
    config: LlamaConfig, quantization: Quantization, kv_format: KVFormat, device: torch.device, block_size: int
) -> Operators:
    """Triton's operators, if every kernel that the model needs gives the right numbers on `device`; else PLAIN."""
    try:
        from worker.engine import triton_path  # torch brings Triton only where it is built for CUDA
        from worker.engine.kernels.triton_rowwise import TritonRowwise

        triton_path.check_kernels(config, quantization, kv_format, device, block_size)
    except Exception as error:  # of a compiler, a linker, a loader or a driver: there is no common one
        log.warning("no Triton on %s, so torch and bitsandbytes decode there, slower: %s", device, error)
        return PLAIN
    is_gpu = device.type == "cuda"  # else Triton's interpreter
    return Operators(
        "triton", triton_path.make_triton_linear, triton_path.make_triton_attention, TritonRowwise(), captures=is_gpu
    )
