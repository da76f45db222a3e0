"""Makes a model of a model folder: reads saved weights or quantizes them by bitsandbytes, and fuses layers.

On a Hopper GPU a quantized Llama becomes a HopperModel, if the kernels take it; anything else becomes a LlamaModel,
with the operators that suit its device (operators.py).

Never imports transformers; its BitsAndBytesConfig gives the same bytes (tests/engine/test_loader_bytes.py).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from worker.engine.checkpoint import BrokenCheckpoint, Checkpoint
from worker.engine.config import (
    ActivationFormat,
    KVFormat,
    LlamaConfig,
    Quantization,
    UnsupportedModel,
    UnsupportedSetting,
)
from worker.engine.hopper_model import HopperModel
from worker.engine.hopper_weights import HopperLayer, HopperWeights, UnpackableWeight, hopper_takes, pack_linear
from worker.engine.kernels.attention import BLOCK_SIZE as HOPPER_BLOCK_SIZE
from worker.engine.kernels.build import KernelBuildError
from worker.engine.kernels.gemm import GemmWorkspace
from worker.engine.kv_tensors import make_kv
from worker.engine.linear import ResidentBudget
from worker.engine.model import LlamaLayer, LlamaModel, LlamaWeights
from worker.engine.operators import PLAIN, Operators, choose_operators
from worker.engine.quantize import checked_nf4, quantize_int8, quantize_nf4
from worker.engine.weights import (
    NF4_CODES,
    DenseWeight,
    Int8Weight,
    LinearWeight,
    NestedAbsmax,
    Nf4Weight,
    concatenate_rows,
)

CPU_RESIDENT_BYTES = 2 << 30  # float32 copies of dequantized weights that the CPU path keeps
PLAIN_BLOCK_SIZE = 16  # positions in a block of a LlamaModel's KV cache
WEIGHTS_SHARE = 0.9  # of the time that loading takes; the rest makes kernels and graphs

log = logging.getLogger(__name__)


def load_model(
    folder: Path,
    quantization: Quantization,
    device: torch.device,
    *,
    kv_blocks: int | None = None,
    kv_bytes: int | None = None,
    block_size: int | None = None,
    resident_bytes: int = CPU_RESIDENT_BYTES,
    progress: Callable[[float], None] = lambda _: None,
    fixed_rows: int = 0,
    kv_format: KVFormat = KVFormat.FLOAT,
    prefill_activations: ActivationFormat = ActivationFormat.FLOAT,
) -> LlamaModel | HopperModel:
    """Load a Hugging Face folder that is unquantized, or that transformers saved in 8 or 4 bits.

    Args:
        folder: holds config.json and safetensors.
        quantization: how the linear layers shall be stored; an unquantized folder is quantized on `device`.
        device: "cpu" or a CUDA device.
        kv_blocks: blocks of the KV cache; or
        kv_bytes: its size. With neither it takes 90 % of the free GPU memory, or 256 MiB on the CPU.
        block_size: positions in one block; by default what suits the model that is made. A HopperModel has 64, and
            any other number makes a LlamaModel.
        resident_bytes: bound on float32 copies of weights; CPU only.
        progress: called with the fraction loaded, 0 to 1, rising; on the caller's thread.
        fixed_rows: see HopperModel; a LlamaModel on the CPU computes every row alike anyway.
        kv_format: what keys and values are held in.
        prefill_activations: see HopperModel.

    Raises UnsupportedModel for a model that the engine does not run or bytes that are already quantized otherwise,
    UnsupportedSetting for activations that the device's kernels do not multiply, BrokenCheckpoint for missing or
    misshapen tensors, ValueError if the KV cache does not fit its budget.
    """
    config = LlamaConfig.from_folder(folder)
    with Checkpoint(folder) as checkpoint:
        source = FolderSource(checkpoint, config, quantization, device)
        is_hopper = block_size in (None, HOPPER_BLOCK_SIZE) and hopper_takes(config, source.quantization, device)
        is_rounded = prefill_activations is ActivationFormat.INT8
        if is_rounded and not (is_hopper and source.quantization is Quantization.INT8):
            found = f"{source.quantization.value} weights on {device}"
            raise UnsupportedSetting(f"int8 activations need int8 weights on the Hopper kernels, not {found}")
        if is_hopper:
            try:
                return load_hopper_model(
                    source,
                    config,
                    kv_blocks=kv_blocks,
                    kv_bytes=kv_bytes,
                    progress=progress,
                    fixed_rows=fixed_rows,
                    prefill_activations=prefill_activations,
                    kv_format=kv_format,
                )
            except (UnpackableWeight, KernelBuildError) as error:
                if is_rounded:
                    raise UnsupportedSetting(f"no kernel multiplies int8 activations here: {error}") from error
                log.warning("the Hopper kernels do not run %s, decoding will be slow: %s", folder, error)
        block_size = block_size or PLAIN_BLOCK_SIZE
        operators = choose_operators(config, source.quantization, kv_format, device, block_size)
        note_weights, note_graphs = _shares(progress) if operators.captures else (progress, progress)
        weights = load_weights(source, config, resident_bytes, note_weights, operators)
    model = build_model(
        config,
        weights,
        kv_blocks=kv_blocks,
        kv_bytes=kv_bytes,
        block_size=block_size,
        operators=operators,
        kv_format=kv_format,
        progress=note_graphs,
    )
    progress(1.0)
    return model


def load_hopper_model(
    source: WeightSource,
    config: LlamaConfig,
    *,
    kv_blocks: int | None,
    kv_bytes: int | None,
    progress: Callable[[float], None],
    fixed_rows: int = 0,
    prefill_activations: ActivationFormat = ActivationFormat.FLOAT,
    kv_format: KVFormat = KVFormat.FLOAT,
) -> HopperModel:
    """Pack every weight from `source`, which is on a Hopper GPU, and put a KV cache beside them.

    Raises UnpackableWeight, KernelBuildError, and what `load_model` does.
    """
    note_weights, note_graphs = _shares(progress)
    weights = load_hopper_weights(source, config, note_weights)
    device = weights.embedding.device
    kv = make_kv(config, kv_format, device, kv_blocks=kv_blocks, kv_bytes=kv_bytes, block_size=HOPPER_BLOCK_SIZE)
    model = HopperModel(config, weights, kv, note_graphs, fixed_rows, prefill_activations)
    progress(1.0)
    return model


def build_model(
    config: LlamaConfig,
    weights: LlamaWeights,
    *,
    kv_blocks: int | None,
    kv_bytes: int | None,
    block_size: int,
    operators: Operators = PLAIN,
    kv_format: KVFormat = KVFormat.FLOAT,
    progress: Callable[[float], None] = lambda _: None,
) -> LlamaModel:
    """Put a KV cache beside weights that are on their device. Arguments and errors are those of `load_model`."""
    device = weights.embedding.device
    kv = make_kv(config, kv_format, device, kv_blocks=kv_blocks, kv_bytes=kv_bytes, block_size=block_size)
    return LlamaModel(
        config,
        weights,
        kv,
        operators.make_attention(kv, device),
        operators.name,
        rowwise=operators.rowwise,
        captures=operators.captures,
        progress=progress,
    )


def _shares(progress: Callable[[float], None]) -> tuple[Callable[[float], None], Callable[[float], None]]:
    """Of the weights and of the graphs that are captured after them, to be called with the fraction of each."""

    def note_weights(fraction: float) -> None:
        progress(WEIGHTS_SHARE * fraction)

    def note_graphs(fraction: float) -> None:
        progress(WEIGHTS_SHARE + (1 - WEIGHTS_SHARE) * fraction)

    return note_weights, note_graphs


class WeightSource(Protocol):
    """Where weights come from: each, when asked for by its Hugging Face name, on the device of the model."""

    def vector(self, name: str) -> Tensor:
        """A norm's weight, float32."""
        ...

    def matrix(self, name: str) -> Tensor:
        """A weight that is never quantized, in the dtype of the model."""
        ...

    def linear(self, module: str, shape: tuple[int, int]) -> LinearWeight:
        """The weight [N, K] of a decoder's linear layer, as it shall be stored."""
        ...


def load_weights(
    source: WeightSource,
    config: LlamaConfig,
    resident_bytes: int,
    progress: Callable[[float], None],
    operators: Operators = PLAIN,
) -> LlamaWeights:
    """Take every weight from `source` and fuse what one product can do. Arguments and errors as for `load_model`."""
    resident, make_linear = ResidentBudget(resident_bytes), operators.make_linear

    def make(stored: _StoredLayer) -> LlamaLayer:
        return LlamaLayer(
            attention_norm=stored.attention_norm,
            qkv=make_linear(stored.qkv, resident),
            attention_out=make_linear(stored.attention_out, resident),
            mlp_norm=stored.mlp_norm,
            gate_up=make_linear(stored.gate_up, resident),
            down=make_linear(stored.down, resident),
        )

    embedding = _read_embedding(source, config)
    return LlamaWeights(
        embedding=embedding,
        layers=tuple(make(stored) for stored in _read_layers(source, config, progress)),
        lm_head=make_linear(DenseWeight(_read_head(source, config, embedding)), resident),
        final_norm=source.vector("model.norm.weight"),
    )


def load_hopper_weights(source: WeightSource, config: LlamaConfig, progress: Callable[[float], None]) -> HopperWeights:
    """The same on a Hopper GPU, packed layer by layer, so that two copies of no more than one layer are in memory."""
    embedding = _read_embedding(source, config)
    workspace = GemmWorkspace(embedding.device)

    def make(stored: _StoredLayer) -> HopperLayer:
        return HopperLayer(
            attention_norm=stored.attention_norm,
            qkv=pack_linear(stored.qkv, workspace),
            attention_out=pack_linear(stored.attention_out, workspace),
            mlp_norm=stored.mlp_norm,
            gate_up=pack_linear(stored.gate_up, workspace, is_gate_up=True),
            down=pack_linear(stored.down, workspace),
        )

    return HopperWeights(
        embedding=embedding,
        layers=tuple(make(stored) for stored in _read_layers(source, config, progress)),
        lm_head=_read_head(source, config, embedding).half(),
        final_norm=source.vector("model.norm.weight"),
    )


class FolderSource:
    """The weights of one folder as they shall be stored, one by one, on the device."""

    def __init__(
        self, checkpoint: Checkpoint, config: LlamaConfig, quantization: Quantization, device: torch.device
    ) -> None:
        saved = config.saved_quantization
        if quantization is Quantization.AS_SAVED:
            quantization = saved
        if saved not in (quantization, Quantization.NONE):
            raise UnsupportedModel(
                f"{checkpoint.folder} is saved as {saved.value}; it cannot be made {quantization.value}"
            )
        self.quantization = quantization
        self._checkpoint = checkpoint
        self._quantizes = quantization is not saved
        self._dtype = getattr(torch, config.dtype) if config.dtype else None
        self._device = device

    def vector(self, name: str) -> Tensor:
        """A norm's weight: float32."""
        return self._dense(name).to(self._device).float()

    def matrix(self, name: str) -> Tensor:
        """A weight that is never quantized, in the dtype of the model."""
        return self._dense(name).to(self._device)

    def linear(self, module: str, shape: tuple[int, int]) -> LinearWeight:
        """The weight of a linear layer [N, K]: read if the checkpoint is quantized, else quantized now.

        Raises BrokenCheckpoint if its shape is not `shape`.
        """
        weight = self._stored(module)
        if weight.shape != shape:
            raise BrokenCheckpoint(f"{module} is {weight.shape}; config.json makes it {shape}")
        return weight

    def _stored(self, module: str) -> LinearWeight:
        if f"{module}.SCB" in self._checkpoint:
            return self._saved_int8(module)
        if f"{module}.weight.absmax" in self._checkpoint:
            return self._saved_nf4(module)
        dense = self._dense(f"{module}.weight").to(self._device)
        if not self._quantizes:
            return DenseWeight(dense)
        if self.quantization is Quantization.INT8:
            return quantize_int8(dense)
        return quantize_nf4(dense, double=self.quantization is Quantization.NF4_DQ)

    def _dense(self, name: str) -> Tensor:
        tensor = self._checkpoint.tensor(name)
        if not tensor.is_floating_point():
            raise BrokenCheckpoint(f"{name} is {tensor.dtype} without the scales that belong to it")
        return tensor if self._dtype is None else tensor.to(self._dtype)

    def _on_device(self, name: str) -> Tensor:
        return self._checkpoint.tensor(name).to(self._device)

    def _saved_int8(self, module: str) -> Int8Weight:
        layout = f"{module}.weight_format"
        if layout in self._checkpoint and int(self._checkpoint.tensor(layout)) != 0:
            raise UnsupportedModel(f"{module} is stored in a GPU's tile order; this engine reads rows")
        return Int8Weight(self._on_device(f"{module}.weight"), self._on_device(f"{module}.SCB").float())

    def _saved_nf4(self, module: str) -> Nf4Weight:
        weight = f"{module}.weight"
        state_name = f"{weight}.quant_state.bitsandbytes__nf4"
        if not torch.equal(self._checkpoint.tensor(f"{weight}.quant_map"), torch.tensor(NF4_CODES)):
            raise UnsupportedModel(f"{module} has a code book of its own; this engine reads NF4's")
        state = json.loads(bytes(self._checkpoint.tensor(state_name).tolist()))
        absmax: Tensor | NestedAbsmax = self._on_device(f"{weight}.absmax")
        if f"{weight}.nested_absmax" in self._checkpoint:
            absmax = NestedAbsmax(
                codes=self._on_device(f"{weight}.absmax"),
                code_book=self._on_device(f"{weight}.nested_quant_map"),
                group_absmax=self._on_device(f"{weight}.nested_absmax"),
                offset=torch.tensor(state["nested_offset"], dtype=torch.float32, device=self._device),
                group_size=state["nested_blocksize"],
            )
        packed = self._on_device(weight).view(torch.uint8).flatten()
        return checked_nf4(Nf4Weight(packed, absmax, tuple(state["shape"]), state["blocksize"]))


@dataclass(frozen=True, slots=True)
class _StoredLayer:
    """One decoder layer as it is stored, fused: rows of `qkv` are all of q, then k, then v."""

    attention_norm: Tensor
    qkv: LinearWeight
    attention_out: LinearWeight
    mlp_norm: Tensor
    gate_up: LinearWeight
    down: LinearWeight


def _read_embedding(source: WeightSource, config: LlamaConfig) -> Tensor:
    embedding = source.matrix("model.embed_tokens.weight")
    if embedding.shape != (config.vocab_size, config.hidden_size):
        raise BrokenCheckpoint(f"the embedding is {tuple(embedding.shape)}; config.json makes it otherwise")
    return embedding


def _read_head(source: WeightSource, config: LlamaConfig, embedding: Tensor) -> Tensor:
    return embedding if config.tie_word_embeddings else source.matrix("lm_head.weight")


def _read_layers(
    source: WeightSource, config: LlamaConfig, progress: Callable[[float], None]
) -> Iterator[_StoredLayer]:
    for index in range(config.num_layers):
        progress(index / config.num_layers)
        yield _read_layer(source, config, f"model.layers.{index}")


def _read_layer(source: WeightSource, config: LlamaConfig, layer: str) -> _StoredLayer:
    hidden, inner = config.hidden_size, config.intermediate_size
    query, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    rows = {"q": query, "k": kv, "v": kv, "o": hidden, "gate": inner, "up": inner, "down": hidden}

    def fused(block: str, names: Sequence[str], inputs: int) -> LinearWeight:
        parts = [source.linear(f"{layer}.{block}.{name}_proj", (rows[name], inputs)) for name in names]
        return _concatenated(parts, layer)

    return _StoredLayer(
        attention_norm=source.vector(f"{layer}.input_layernorm.weight"),
        qkv=fused("self_attn", ("q", "k", "v"), hidden),
        attention_out=fused("self_attn", ("o",), query),
        mlp_norm=source.vector(f"{layer}.post_attention_layernorm.weight"),
        gate_up=fused("mlp", ("gate", "up"), hidden),
        down=fused("mlp", ("down",), inner),
    )


def _concatenated(parts: Sequence[LinearWeight], layer: str) -> LinearWeight:
    try:
        return concatenate_rows(parts)
    except ValueError as error:
        raise UnsupportedModel(f"{layer}: {error}") from error
