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
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.engine.oracle import block_tables, random_prompts
from tests.engine.random_source import RandomSource
from worker.engine.batch import SequenceSlice
from worker.engine.config import LlamaConfig, Quantization
from worker.engine.kernels.triton_attention import SPLIT, decode_attention
from worker.engine.kernels.triton_product import MAX_ROWS, TritonProduct
from worker.engine.kv_tensors import KVTensors
from worker.engine.loader import load_weights, quantize_nf4
from worker.engine.model import LlamaModel
from worker.engine.operators import PLAIN, Operators, try_triton
from worker.engine.weights import Int8Weight, Nf4Weight

CPU = torch.device("cpu")
MAX_PRODUCT_ERROR = 6e-4  # relative: the rounding of fp16 results, and of NF4 weights to fp16
MAX_ATTENTION_ERROR = 2e-3
MAX_LOGITS_ERROR = 1e-2  # float16 activations through two layers
QUANTIZED = (Quantization.INT8, Quantization.NF4, Quantization.NF4_DQ)


def product_error(
    quantization: Quantization, shape: tuple[int, int], num_rows: int, num_multiprocessors: int, device: torch.device
) -> float:
    """Of a product, against float64 over what bitsandbytes itself dequantizes."""
    generator = torch.Generator().manual_seed(num_rows)
    weight, dense = stored(quantization, torch.randn(shape, generator=generator).half(), device)
    x = torch.randn(num_rows, shape[1], generator=generator).half().to(device)
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


def attention_error(num_heads: int, num_kv_heads: int, head_dim: int, block_size: int, device: torch.device) -> float:
    """Of decode attention over scattered blocks, where all that no sequence has written is NaN."""
    generator = torch.Generator().manual_seed(head_dim)
    positions = [0, 1, block_size - 1, block_size, SPLIT - 1, SPLIT, SPLIT + 70, 2 * SPLIT + 3]
    width = positions[-1] // block_size + 1
    tables = torch.randperm(len(positions) * width, generator=generator).view(-1, width)
    shape = (len(positions) * width, block_size, num_kv_heads, head_dim)
    keys, values = (torch.full(shape, math.nan, dtype=torch.float16) for _ in range(2))
    query = torch.randn(len(positions), num_heads, head_dim, generator=generator).half()
    expected = torch.empty(query.shape, dtype=torch.float64)
    for row, position in enumerate(positions):
        places = torch.arange(position + 1)
        slots = tables[row, places // block_size] * block_size + places % block_size
        for cache in (keys, values):
            new = torch.randn(position + 1, num_kv_heads, head_dim, generator=generator).half()
            cache.view(-1, num_kv_heads, head_dim)[slots] = new
        all_keys, all_values = (
            cache.view(-1, num_kv_heads, head_dim)[slots].double().repeat_interleave(num_heads // num_kv_heads, 1)
            for cache in (keys, values)
        )
        mixed = F.scaled_dot_product_attention(
            query[row, :, None].double(), all_keys.transpose(0, 1), all_values.transpose(0, 1)
        )
        expected[row] = mixed[:, 0]
    query, keys, values, tables = query.to(device), keys.to(device), values.to(device), tables.to(device)
    with poisoned_memory():
        out = decode_attention(
            query, keys, values, torch.tensor(positions, device=device), tables, num_keys=positions[-1] + 1
        )
    assert out.dtype == torch.float16
    return relative_error(out.cpu(), expected)


def logits_error(quantization: Quantization, device: torch.device) -> float:
    """Of a whole model, against the CPU path: prompts longer and shorter than MAX_ROWS, then decode steps."""
    config = small_config()
    prompts = random_prompts(config.vocab_size, [MAX_ROWS + 20, 5], seed=1)
    operators = try_triton(config, quantization, device, 16)
    assert operators.name == "triton"
    tested, oracle = model_of(config, quantization, device, operators), model_of(config, quantization, CPU, PLAIN)
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


def model_of(config: LlamaConfig, quantization: Quantization, device: torch.device, operators: Operators) -> LlamaModel:
    """The same random weights on any device, over a cache of the dtype that the operators take."""
    dtype = torch.float32 if operators is PLAIN else torch.float16
    kv = KVTensors(config, num_blocks=30, block_size=16, dtype=dtype, device=device)
    weights = load_weights(RandomSource(config, quantization, device, CPU), config, 1 << 30, lambda _: None, operators)
    return LlamaModel(config, weights, kv, operators.make_attention(kv, device), operators.name)


def small_config() -> LlamaConfig:
    """Two layers of four heads of 32 that share two key-value heads; one of its sizes is no multiple of 128."""
    return LlamaConfig(128, 192, 2, 4, 2, 32, 300, 512, 1e-5, 10000.0, False, "float16", Quantization.NONE)


def stored(quantization: Quantization, values: Tensor, device: torch.device) -> tuple[Int8Weight | Nf4Weight, Tensor]:
    """A weight, and what bitsandbytes dequantizes it to in float32; both on `device`."""
    from bitsandbytes import functional  # takes seconds to import

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
ROWS = (1, 5, 16, 17, 33, 65)
ATTENTIONS = [(4, 4, 128, 16), (16, 2, 64, 64), (3, 1, 80, 16)]

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
    **{f"attention {shape}": (MAX_ATTENTION_ERROR, partial(attention_error, *shape)) for shape in ATTENTIONS},
    **{f"{kind.value} model": (MAX_LOGITS_ERROR, partial(logits_error, kind)) for kind in QUANTIZED},
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    json.dump({name: compute(CPU) for name, (_, compute) in CHECKS.items()}, sys.stdout)
