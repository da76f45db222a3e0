"""A Llama's weights as the Hopper kernels read them, and which models those kernels take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.config import LlamaConfig, Quantization
from worker.engine.kernels.attention import HEAD_DIM
from worker.engine.kernels.build import runs_on
from worker.engine.kernels.gemm import GemmWorkspace, QuantizedGemm, pack
from worker.engine.weights import DenseWeight, LinearWeight

_PACKABLE = frozenset({Quantization.INT8, Quantization.NF4, Quantization.NF4_DQ})
_MAX_HIDDEN = 8192  # of one row of add_rms_norm
_MAX_HEADS_PER_KV_HEAD = 8


class UnpackableWeight(ValueError):
    """A weight is stored in a way that the kernels do not read; the plain path does."""


@dataclass(frozen=True, slots=True)
class HopperLayer:
    """One decoder layer. Norm weights are [hidden] float32; `gate_up` gives silu(gate) * up."""

    attention_norm: Tensor
    qkv: QuantizedGemm
    attention_out: QuantizedGemm
    mlp_norm: Tensor
    gate_up: QuantizedGemm
    down: QuantizedGemm

    @property
    def gemms(self) -> tuple[QuantizedGemm, ...]:
        """Its four products."""
        return self.qkv, self.attention_out, self.gate_up, self.down


@dataclass(frozen=True, slots=True)
class HopperWeights:
    """Everything a model has learned, on one GPU: `embedding` [V, hidden], `lm_head` [V, hidden] float16."""

    embedding: Tensor
    layers: tuple[HopperLayer, ...]
    final_norm: Tensor
    lm_head: Tensor

    @property
    def num_bytes_read(self) -> int:
        """Bytes of weights that a decode step reads, each once; a row of the embedding not counted."""
        layers = sum(
            gemm.weight.units.nbytes + gemm.weight.row_scale.nbytes for each in self.layers for gemm in each.gemms
        )
        norms = sum(each.attention_norm.nbytes + each.mlp_norm.nbytes for each in self.layers)
        return layers + norms + self.final_norm.nbytes + self.lm_head.nbytes


def hopper_takes(config: LlamaConfig, quantization: Quantization, device: torch.device) -> bool:
    """Whether the kernels run on this device and take a model of this shape, stored this way."""
    return (
        quantization in _PACKABLE
        and config.head_dim == HEAD_DIM
        and config.num_heads // config.num_kv_heads <= _MAX_HEADS_PER_KV_HEAD
        and config.hidden_size % 256 == 0
        and config.hidden_size <= _MAX_HIDDEN
        and config.intermediate_size % 64 == 0
        and runs_on(device)
    )


def pack_linear(weight: LinearWeight, workspace: GemmWorkspace, *, is_gate_up: bool = False) -> QuantizedGemm:
    """The product with a weight on the GPU, whose own bytes may be freed after. Raises UnpackableWeight."""
    if isinstance(weight, DenseWeight):
        raise UnpackableWeight("a linear layer is not quantized")
    try:
        return QuantizedGemm(pack(weight, is_gate_up=is_gate_up), workspace)
    except ValueError as error:
        raise UnpackableWeight(str(error)) from error
