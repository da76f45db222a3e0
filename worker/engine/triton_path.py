"""Where the Hopper kernels do not run: Triton multiplies few rows and decodes, the plain path does the rest."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from worker.engine.attention import Attention, GatheredAttention, QueryGroup, plan_step
from worker.engine.batch import SequenceSlice
from worker.engine.config import KVFormat, LlamaConfig, Quantization
from worker.engine.kernels.triton_attention import SPLIT, decode_attention
from worker.engine.kernels.triton_product import MAX_ROWS, TILE_SIZES, TritonProduct, block_inputs, takes
from worker.engine.kernels.triton_rowwise import TritonRowwise
from worker.engine.kv_tensors import KVCache, kv_class
from worker.engine.linear import Int8Linear, Linear, Nf4Linear, ResidentBudget, make_linear
from worker.engine.rowwise import PlainRowwise
from worker.engine.weights import DenseWeight, Int8Weight, LinearWeight, Nf4Weight

MIN_NF4_ROWS = 2  # one is multiplied by bitsandbytes' kernel for it in half the time (bench/KERNELS.md)
MAX_ERROR = 2e-3  # relative, of fp16 products and attention; both have about 3e-4


class WrongKernel(RuntimeError):
    """A kernel computes something else than torch does."""


class TritonLinear:
    """int8 or NF4, float16 activations: up to MAX_ROWS rows by the kernels, more as the plain path does.

    Args:
        min_rows: fewer are multiplied by the plain path too.
    """

    def __init__(self, product: TritonProduct, plain: Linear, min_rows: int) -> None:
        self._product = product
        self._plain = plain
        self._min_rows = min_rows

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply [T, K] into [T, N] float16."""
        if self._min_rows <= x.shape[0] <= MAX_ROWS:
            return self._product(x.half())
        return self._plain(x)


class TritonAttention(GatheredAttention):
    """Slices of one token straight from their blocks; longer ones over keys and values copied out of them."""

    def _attend(self, layer: int, query: Tensor, group: QueryGroup) -> Tensor:
        if group.blocks.shape[0] != query.shape[0]:
            return super()._attend(layer, query, group)
        kv = self._kv
        key_scales, value_scales = kv.scales(layer) or (None, None)
        return decode_attention(
            query,
            kv.keys[layer],
            kv.values[layer],
            key_scales,
            value_scales,
            group.positions,
            group.blocks,
            group.num_keys,
        )


def make_triton_linear(weight: LinearWeight, resident: ResidentBudget) -> Linear:
    """The layer that multiplies by `weight`; a plain one where the kernels do not read it. The bytes are there once."""
    if isinstance(weight, DenseWeight) or not takes(weight):
        return make_linear(weight, resident)
    if isinstance(weight, Nf4Weight):
        weight = replace(weight, absmax=weight.flat_absmax())
    product = TritonProduct(weight, _num_multiprocessors(weight.device))
    if isinstance(weight, Int8Weight):
        return TritonLinear(product, Int8Linear(weight), min_rows=1)
    return TritonLinear(product, Nf4Linear(weight), MIN_NF4_ROWS)


def make_triton_attention(kv: KVCache, _: torch.device) -> Attention:
    """Over the tensors of `kv`, which are float16 or int8."""
    return TritonAttention(kv)


def check_kernels(
    config: LlamaConfig, quantization: Quantization, kv_format: KVFormat, device: torch.device, block_size: int
) -> None:
    """Run every variant of the kernels that a model of this shape needs on small inputs, and compare with torch.

    So each is compiled, or found on disk, before the first request. Raises WrongKernel, and whatever Triton raises
    where a kernel does not compile, load or fit.
    """
    inputs = {config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim}
    generator = torch.Generator(device).manual_seed(0)
    if quantization is not Quantization.NONE:
        for block in sorted({block_inputs(size) for size in inputs if size % 64 == 0}):
            for rows in TILE_SIZES:
                _check_product(quantization, rows, 6 * block, generator)
    _check_attention(config, kv_format, block_size, generator)
    _check_rowwise(config, generator)


def _check_product(quantization: Quantization, num_rows: int, num_inputs: int, generator: torch.Generator) -> None:
    device, shape = generator.device, (144, num_inputs)
    absmax = torch.rand(shape[0] * num_inputs // 64, device=device, generator=generator) + 0.5
    weight: Int8Weight | Nf4Weight
    if quantization is Quantization.INT8:
        codes = torch.randint(-127, 128, shape, dtype=torch.int8, device=device, generator=generator)
        weight = Int8Weight(codes, absmax[: shape[0]])
    else:
        packed = torch.randint(0, 256, (shape[0] * num_inputs // 2,), device=device, generator=generator)
        weight = Nf4Weight(packed.to(torch.uint8), absmax, shape, 64)
    x = torch.randn(num_rows, num_inputs, device=device, generator=generator).half()
    expected = x.double() @ weight.dequantize(torch.float64).t()
    for num_multiprocessors in (1, 100):  # without and with splits
        product = TritonProduct(weight, num_multiprocessors)
        _compare(product(x), expected, f"the {quantization.value} product of {num_rows} rows")


def _check_attention(config: LlamaConfig, kv_format: KVFormat, block_size: int, generator: torch.Generator) -> None:
    """Two sequences, one of a single position and one of two pieces."""
    device, lengths = generator.device, (1, SPLIT + 20)
    num_blocks = 1 + -(-lengths[1] // block_size)
    kind, one_layer = kv_class(kv_format), replace(config, num_layers=1)
    kv = kind(one_layer, num_blocks=num_blocks, block_size=block_size, dtype=torch.float16, device=device)
    slots = torch.arange(num_blocks * block_size, device=device)
    held = (2, len(slots), config.num_kv_heads, config.head_dim)
    keys, values = torch.randn(held, device=device, generator=generator)
    kv.write(0, keys, values, slots, slots[:0])
    tables: tuple[list[int], list[int]] = ([0], list(range(num_blocks - 1, 0, -1)))
    slices = [SequenceSlice([0], length - 1, table, True) for length, table in zip(lengths, tables, strict=True)]
    plan = plan_step(slices, block_size, device)
    query = torch.randn(2, config.num_heads, config.head_dim, device=device, generator=generator)
    _compare(TritonAttention(kv)(0, query, plan), GatheredAttention(kv)(0, query, plan).double(), "decode attention")


def _check_rowwise(config: LlamaConfig, generator: torch.Generator) -> None:
    """Two tokens' norm, rotation and gate, at the sizes of the model."""
    device, triton, plain = generator.device, TritonRowwise(), PlainRowwise()
    x = torch.randn(2, config.hidden_size, device=device, generator=generator)
    weight = torch.rand(config.hidden_size, device=device, generator=generator)
    _compare(
        triton.norm(x, weight, config.rms_norm_eps), plain.norm(x, weight, config.rms_norm_eps).double(), "the norm"
    )
    heads = torch.randn(2, config.num_heads, config.head_dim, device=device, generator=generator).half()
    cos, sin = torch.rand(2, 2, config.head_dim // 2, device=device, generator=generator)
    _compare(triton.rotate(heads, cos, sin), plain.rotate(heads, cos, sin).double(), "the rotation")
    gate_up = torch.randn(2, 2 * config.intermediate_size, device=device, generator=generator).half()
    _compare(triton.gate(gate_up), plain.gate(gate_up).double(), "the gate")


def _compare(found: Tensor, expected: Tensor, name: str) -> None:
    error = float((found.double() - expected).norm() / expected.norm())
    if not error < MAX_ERROR:  # NaN is not
        raise WrongKernel(f"{name} is off by {error:.1e}")


def _num_multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
