"""What the Triton kernels have to compute, as errors against bitsandbytes and the CPU path; on any device.

`TRITON_INTERPRET=1 python -m tests.engine.triton_checks` interprets the kernels on the CPU and prints every error as
JSON. Kernels are interpreted if the variable is set when Triton is imported, and compiled if not, so the tests of a
machine without a GPU run this as a process of its own.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.engine.oracle import block_tables, random_prompts
from tests.engine.random_source import RandomSource
from worker.engine.batch import SequenceSlice
from worker.engine.bnb import import_bitsandbytes
from worker.engine.config import KVFormat, LlamaConfig, Quantization
from worker.engine.kernels.triton_attention import SPLIT, decode_attention
from worker.engine.kernels.triton_product import MAX_ROWS, TritonProduct
from worker.engine.kernels.triton_rowwise import TritonRowwise
from worker.engine.kv_tensors import Int8KVTensors, KVTensors
from worker.engine.loader import load_weights
from worker.engine.model import LlamaModel
from worker.engine.operators import PLAIN, Operators, try_triton
from worker.engine.quantize import quantize_nf4
from worker.engine.rowwise import PlainRowwise
from worker.engine.weights import Int8Weight, Nf4Weight

CPU = torch.device("cpu")
MAX_PRODUCT_ERROR = 6e-4  # relative: the rounding of fp16 results, and of NF4 weights to fp16
MAX_ATTENTION_ERROR = 2e-3
MAX_ROWWISE_ERROR = 4e-4  # float16 results
MAX_LOGITS_ERROR = 1e-2  # float16 activations through two layers
QUANTIZED = (Quantization.INT8, Quantization.NF4, Quantization.NF4_DQ)


def product_error(
    quantization: Quantization, shape: tuple[int, int], num_rows: int, num_multiprocessors: int, device: torch.device
) -> float:
    """Of a product, against float64 over what bitsandbytes itself dequantizes."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(num_rows)).half()
    return error_of_product(*stored(quantization, values, device), num_rows, num_multiprocessors)


def error_of_product(weight: Int8Weight | Nf4Weight, dense: Tensor, num_rows: int, num_multiprocessors: int) -> float:
    """Of a product with a weight that bitsandbytes dequantizes to `dense`."""
    x = torch.randn(num_rows, dense.shape[1], generator=torch.Generator().manual_seed(num_rows)).half().to(dense.device)
    with poisoned_memory():
        out = TritonProduct(weight, num_multiprocessors)(x)
    assert out.dtype == torch.float16
    return relative_error(out, x.double() @ dense.double().t())


def weights_that_differ(quantization: Quantization, device: torch.device) -> float:
    """Share of NF4 weights that are not to the bit what bitsandbytes makes of them: products with one-hot rows."""
    weight, dense = stored(quantization, torch.randn(70, 192).half(), device)
    x = torch.eye(192, dtype=torch.float16, device=device)
    found = TritonProduct(weight, num_multiprocessors=1)(x)
    return float((found != dense.half().t()).float().mean())


def attention_error(
    num_heads: int, num_kv_heads: int, head_dim: int, block_size: int, kv_format: KVFormat, device: torch.device
) -> float:
    """Of decode attention over scattered blocks, where all that no sequence has written is NaN."""
    generator = torch.Generator().manual_seed(head_dim)
    positions = [0, 1, block_size - 1, block_size, SPLIT - 1, SPLIT, SPLIT + 70, 2 * SPLIT + 3]
    width = positions[-1] // block_size + 1
    tables = torch.randperm(len(positions) * width, generator=generator).view(-1, width).to(device)
    config = replace(small_config(), num_layers=1, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    kind, dtype = (Int8KVTensors, torch.float32) if kv_format is KVFormat.INT8 else (KVTensors, torch.float16)
    kv = kind(config, num_blocks=tables.numel(), block_size=block_size, dtype=dtype, device=device)
    poison(kv)
    query = torch.randn(len(positions), num_heads, head_dim, generator=generator).half().to(device)
    expected = torch.empty(query.shape, dtype=torch.float64, device=device)
    for row, position in enumerate(positions):
        places = torch.arange(position + 1, device=device)
        slots = tables[row, places // block_size] * block_size + places % block_size
        new_keys, new_values = torch.randn(2, position + 1, num_kv_heads, head_dim, generator=generator).to(device)
        kv.write(0, new_keys, new_values, slots, slots[:0])
        keys, values = (
            held.flatten(0, 1)[: position + 1].double().repeat_interleave(num_heads // num_kv_heads, 1).transpose(0, 1)
            for held in kv.read(0, tables[row])
        )
        expected[row] = F.scaled_dot_product_attention(query[row, :, None].double(), keys, values)[:, 0]
    scales: list[Tensor | None] = [None, None]
    if isinstance(kv, Int8KVTensors):
        scales = [kv.key_scales[0], kv.value_scales[0]]
    at = torch.tensor(positions, device=device)
    with poisoned_memory():
        out = decode_attention(query, kv.keys[0], kv.values[0], scales[0], scales[1], at, tables, positions[-1] + 1)
    assert out.dtype == torch.float16
    return relative_error(out, expected)


def rowwise_error(name: str, shape: tuple[int, ...], device: torch.device) -> float:
    """Of the norm, the rotation or the gate of rows, against float64."""
    generator = torch.Generator().manual_seed(shape[-1])
    tested, plain = TritonRowwise(), PlainRowwise()
    x = 3 * torch.randn(shape, generator=generator, dtype=torch.float32).to(device)
    with poisoned_memory():
        if name == "norm":
            weight = torch.rand(shape[1], generator=generator).to(device)
            out, expected = tested.norm(x, weight, 1e-5), plain.norm(x.double(), weight.double(), 1e-5)
        elif name == "gate":
            x[0, 0], x[-1, 1] = -20_000, 2_000
            out, expected = tested.gate(x.half()), plain.gate(x.half().double())
        else:
            angles = torch.randn(shape[0], shape[2] // 2, generator=generator).to(device)
            part = x.half()[:, 1:]  # of what one product gave, as queries and keys are
            out, expected = tested.rotate(part, angles.cos(), angles.sin()), exact_rotation(part.double(), angles)
    assert out.dtype == torch.float16
    return relative_error(out, expected)


def exact_rotation(heads: Tensor, angles: Tensor) -> Tensor:
    """In float64, by complex numbers."""
    first, second = heads.chunk(2, dim=-1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles).double(), angles.double())[:, None]
    return torch.cat([turned.real, turned.imag], dim=-1)


def poison(kv: KVTensors | Int8KVTensors) -> None:
    """What others left in the cache is NaN."""
    scales = (*kv.key_scales, *kv.value_scales) if isinstance(kv, Int8KVTensors) else ()
    for cache in (*kv.keys, *kv.values, *scales):
        cache.fill_(math.nan if cache.is_floating_point() else 99)


def logits_error(quantization: Quantization, kv_format: KVFormat, device: torch.device) -> float:
    """Of a whole model, against the CPU path: prompts longer and shorter than MAX_ROWS, then decode steps.

    Both hold keys and values alike, so this is not the error of an int8 cache.
    """
    config = small_config()
    prompts = random_prompts(config.vocab_size, [MAX_ROWS + 20, 5], seed=1)
    operators = try_triton(config, quantization, kv_format, device, 16)
    assert operators.name == "triton"
    tested = model_of(config, quantization, kv_format, device, operators)
    oracle = model_of(config, quantization, kv_format, CPU, PLAIN)
    tables = block_tables(oracle, [MAX_ROWS + 30, 20, 20])
    steps = [
        [SequenceSlice(prompts[0], 0, tables[0], True)],
        [SequenceSlice([7], MAX_ROWS + 20, tables[0], True), SequenceSlice(prompts[1], 0, tables[1], True)],
        [
            SequenceSlice([3], 5, tables[1], True),
            SequenceSlice([9], MAX_ROWS + 21, tables[0], True),
            SequenceSlice([8], 0, tables[2], True),
        ],
    ]
    errors = [relative_error(tested.forward(step).cpu(), oracle.forward(step)) for step in steps]
    return max(errors) if all(error == error for error in errors) else math.nan


def model_of(
    config: LlamaConfig, quantization: Quantization, kv_format: KVFormat, device: torch.device, operators: Operators
) -> LlamaModel:
    """The same random weights on any device, over a cache of the dtype that the operators take."""
    kind = Int8KVTensors if kv_format is KVFormat.INT8 else KVTensors
    dtype = torch.float32 if operators.name == PLAIN.name else torch.float16
    kv = kind(config, num_blocks=30, block_size=16, dtype=dtype, device=device)
    weights = load_weights(RandomSource(config, quantization, device, CPU), config, 1 << 30, lambda _: None, operators)
    attention = operators.make_attention(kv, device)
    return LlamaModel(
        config, weights, kv, attention, operators.name, rowwise=operators.rowwise, captures=operators.captures
    )


def small_config() -> LlamaConfig:
    """Two layers of four heads of 32 that share two key-value heads; one of its sizes is no multiple of 128."""
    return LlamaConfig(128, 192, 2, 4, 2, 32, 300, 512, 1e-5, 10000.0, False, "float16", Quantization.NONE)


def stored(quantization: Quantization, values: Tensor, device: torch.device) -> tuple[Int8Weight | Nf4Weight, Tensor]:
    """A weight, and what bitsandbytes dequantizes it to in float32; both on `device`."""
    functional = import_bitsandbytes("bitsandbytes.functional")
    values = values.to(device)
    if quantization is Quantization.INT8:
        codes, row_absmax, _ = functional.int8_vectorwise_quant(values)
        return Int8Weight(codes, row_absmax), functional.int8_vectorwise_dequant(codes, row_absmax)
    double = quantization is Quantization.NF4_DQ
    packed, state = functional.quantize_4bit(values, blocksize=64, quant_type="nf4", compress_statistics=double)
    state.dtype = torch.float32
    return quantize_nf4(values, double=double), functional.dequantize_4bit(packed, state)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """What is allocated without a value is NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert getattr(torch.utils.deterministic, "fill_uninitialized_memory")  # noqa: B009  # torch states no type
    yield
    torch.use_deterministic_algorithms(before)


def relative_error(out: Tensor, expected: Tensor) -> float:
    """Norm of the difference over norm of the expected; NaN where out has one."""
    return float((out.double() - expected.double()).norm() / expected.double().norm())


# (N, K): whole tiles, a ragged one with inputs in blocks of 64, and enough inputs to be split
PRODUCTS = [((128, 256), 1), ((100, 192), 1), ((70, 1024), 100)]
ROWS = (1, 16, 33, 65)
# heads, key-value heads, dimensions, positions in a block
ATTENTIONS = [(4, 4, 128, 16), (16, 2, 64, 64), (3, 1, 80, 16)]

# the numbers of a row, or heads and dimensions: no power of two, and more than one program's
ROWWISE = [
    ("norm", (3, 100)),
    ("norm", (2, 4096)),
    ("rotate", (3, 5, 80)),
    ("rotate", (2, 9, 128)),
    ("gate", (3, 2400)),
]

# Each check by its name: what it may be off by at most, and what computes it.
CHECKS: Mapping[str, tuple[float, Callable[[torch.device], float]]] = {
    **{
        f"{kind.value} {shape[0]}x{shape[1]} rows={rows}": (
            MAX_PRODUCT_ERROR,
            partial(product_error, kind, shape, rows, multiprocessors),
        )
        for kind in QUANTIZED
        for shape, multiprocessors in PRODUCTS
        for rows in ROWS
    },
    **{f"{kind.value} weights": (0.0, partial(weights_that_differ, kind)) for kind in QUANTIZED[1:]},
    **{
        f"{kv_format.value} attention {shape}": (MAX_ATTENTION_ERROR, partial(attention_error, *shape, kv_format))
        for shape in ATTENTIONS
        for kv_format in KVFormat
    },
    **{f"{name} of {shape}": (MAX_ROWWISE_ERROR, partial(rowwise_error, name, shape)) for name, shape in ROWWISE},
    **{
        f"{kind.value} model, {kv_format.value} cache": (MAX_LOGITS_ERROR, partial(logits_error, kind, kv_format))
        for kind, kv_format in zip(QUANTIZED, (KVFormat.FLOAT, KVFormat.FLOAT, KVFormat.INT8), strict=True)
    },
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    json.dump({name: compute(CPU) for name, (_, compute) in CHECKS.items()}, sys.stdout)
