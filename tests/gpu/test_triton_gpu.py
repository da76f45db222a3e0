"""The Triton kernels on a GPU, a Hopper one too: the interpreter's checks, and what only real hardware can show."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.engine.oracle import block_tables, random_prompts
from tests.engine.triton_checks import (
    CHECKS,
    MAX_PRODUCT_ERROR,
    QUANTIZED,
    error_of_product,
    model_of,
    small_config,
    stored,
)
from worker.engine.batch import SequenceSlice
from worker.engine.config import KVFormat, Quantization
from worker.engine.kernels.triton_attention import SPLIT, decode_attention
from worker.engine.kernels.triton_product import MAX_ROWS, TritonProduct
from worker.engine.operators import choose_operators

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def exact_float32() -> None:
    """References are exact throughout."""
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("kv_format", list(KVFormat))
@pytest.mark.parametrize("quantization", [Quantization.NONE, *QUANTIZED])
def test_the_kernels_are_chosen(quantization: Quantization, kv_format: KVFormat) -> None:
    """On every GPU from Ampere on: the check of all variants has passed."""
    assert choose_operators(small_config(), quantization, kv_format, CUDA, 16).name == "triton"


@pytest.mark.parametrize("name", list(CHECKS))
def test_a_kernel_computes_what_it_should(name: str) -> None:
    """As under the interpreter, compiled."""
    bound, compute = CHECKS[name]
    assert compute(CUDA) <= bound


@pytest.mark.parametrize("shape", [(12288, 4096), (4096, 11008), (22016, 4096), (10240, 8192)], ids=str)
@pytest.mark.parametrize("quantization", QUANTIZED)
def test_products_of_real_layers(quantization: Quantization, shape: tuple[int, int]) -> None:
    """Of 7B and 70B, at every size of a batch, split as the GPU wants it."""
    num_multiprocessors = torch.cuda.get_device_properties(CUDA).multi_processor_count
    weight, dense = stored(quantization, torch.randn(shape, device=CUDA).half(), CUDA)
    for rows in (1, 2, 15, 16, 17, 32, 33, 64, 65, 128, MAX_ROWS):
        assert error_of_product(weight, dense, rows, num_multiprocessors) < MAX_PRODUCT_ERROR, f"{rows} rows"


@pytest.mark.parametrize("quantization", QUANTIZED)
def test_a_product_is_deterministic(quantization: Quantization) -> None:
    """The same bits from run to run, and for a row among others of the same tile."""
    weight, _ = stored(quantization, torch.randn(4096, 4096, device=CUDA).half(), CUDA)
    product = TritonProduct(weight, num_multiprocessors=108)
    assert product.num_splits > 1
    x = torch.randn(64, 4096, device=CUDA).half()
    first = product(x)
    order = torch.randperm(64, device=CUDA)
    for _ in range(20):
        assert torch.equal(product(x), first)
    assert torch.equal(product(x[order].contiguous()), first[order])


def test_attention_does_not_depend_on_the_batch() -> None:
    """A row alone, and among others of longer contexts, has the same bits."""
    positions = torch.tensor([5, SPLIT + 7, 3 * SPLIT, 2000], device=CUDA)
    tables = torch.randperm(4 * 128, device=CUDA).view(4, 128)
    keys, values = (torch.randn(512, 16, 8, 128, device=CUDA).half() for _ in range(2))
    query = torch.randn(4, 64, 128, device=CUDA).half()
    together = decode_attention(query, keys, values, None, None, positions, tables, 2001)
    assert not math.isnan(float(together.float().sum()))
    for row in range(4):
        at = slice(row, row + 1)
        num_keys = int(positions[row]) + 1
        alone = decode_attention(query[at], keys, values, None, None, positions[at], tables[at], num_keys)
        assert torch.equal(alone, together[at])


@pytest.mark.parametrize("kv_format", list(KVFormat))
@pytest.mark.parametrize("quantization", QUANTIZED)
def test_captured_steps_are_those_that_are_not(quantization: Quantization, kv_format: KVFormat) -> None:
    """The same bits, whatever the batch is padded to; and nothing is written but each sequence's own position."""
    config = small_config()
    operators = choose_operators(config, quantization, kv_format, CUDA, 16)
    assert operators.captures
    captured = model_of(config, quantization, kv_format, CUDA, operators)
    plain = model_of(config, quantization, kv_format, CUDA, replace(operators, captures=False))
    prompts = random_prompts(config.vocab_size, [1, 15, 16, 40, 100], seed=3)
    tables = block_tables(captured, [48, 48, 48, 64, 112])
    for model in (captured, plain):
        model.forward([SequenceSlice(prompt, 0, table, True) for prompt, table in zip(prompts, tables, strict=True)])
    for step in range(40):
        some = [number for number in range(len(prompts)) if step % (number + 1) == 0]
        slices = [SequenceSlice([5 + step], len(prompts[number]), tables[number], True) for number in some]
        assert torch.equal(captured.forward(slices), plain.forward(slices)), f"step {step}"
        for number in some:
            prompts[number].append(5 + step)
    for ours, theirs in zip((*captured.kv.keys, *captured.kv.values), (*plain.kv.keys, *plain.kv.values), strict=True):
        for prompt, table in zip(prompts, tables, strict=True):
            seen = [(table[position // 16], position % 16) for position in range(len(prompt))]
            blocks, offsets = (torch.tensor(part, device=CUDA) for part in zip(*seen, strict=True))
            assert torch.equal(ours[blocks, offsets], theirs[blocks, offsets])
