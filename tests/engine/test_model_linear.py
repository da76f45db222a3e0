"""What one row goes through on the CPU has the same bits whatever rows are beside it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worker.engine.config import Quantization
from worker.engine.linear import (
    ROW_TILE,
    HalfLinear,
    Int8Linear,
    Linear,
    Nf4Linear,
    ResidentBudget,
    TiledLinear,
    make_linear,
)
from worker.engine.quantize import quantize_int8, quantize_nf4
from worker.engine.rowwise import PlainRowwise
from worker.engine.weights import DenseWeight, Int8Weight, LinearWeight, Nf4Weight, concatenate_rows

NUM_ROWS = [1, 2, 3, 15, 16, 17, 33, 64, 100, 257]


def random_weight(outputs: int, inputs: int, quantization: Quantization, seed: int = 0) -> LinearWeight:
    """A weight [N, K] stored as `quantization` says."""
    values = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)).half()
    match quantization:
        case Quantization.INT8:
            return quantize_int8(values)
        case Quantization.NF4 | Quantization.NF4_DQ:
            return quantize_nf4(values, double=quantization is Quantization.NF4_DQ)
        case _:
            return DenseWeight(values)


@pytest.mark.parametrize("shape", [(768, 256), (2000, 256), (256, 704), (130, 64), (512, 4096)], ids=str)
@pytest.mark.parametrize("quantization", list(Quantization)[1:])
def test_a_row_has_the_same_bits_in_any_company(shape: tuple[int, int], quantization: Quantization) -> None:
    """One row, first, middle and last of products with 1 to 257 rows."""
    torch.manual_seed(1)
    linear = make_linear(random_weight(*shape, quantization), ResidentBudget(1 << 30))
    row = torch.randn(shape[1])
    alone = linear(row[None])[0]

    for num_rows in NUM_ROWS:
        for place in {0, num_rows // 2, num_rows - 1}:
            batch = torch.randn(num_rows, shape[1])
            batch[place] = row
            assert torch.equal(linear(batch)[place], alone)


@pytest.mark.parametrize("quantization", list(Quantization)[1:])
def test_a_product_is_that_of_the_dequantized_weight(quantization: Quantization) -> None:
    """Against float64, for a number of rows that fills no tile."""
    torch.manual_seed(2)
    weight = random_weight(130, 192, quantization)
    x = torch.randn(2 * ROW_TILE + 3, 192)

    product = TiledLinear(weight, keep=True)(x)

    assert torch.allclose(product.double(), x.double() @ weight.dequantize(torch.float64).t(), atol=1e-4)


def gpu_linear(weight: LinearWeight) -> Linear:
    """The layer that a GPU would get."""
    match weight:
        case DenseWeight():
            return HalfLinear(weight)
        case Int8Weight():
            return Int8Linear(weight)
        case Nf4Weight():
            return Nf4Linear(weight)


@pytest.mark.parametrize("quantization", list(Quantization)[1:])
def test_a_gpu_layer_gives_the_same_product_in_float16(quantization: Quantization) -> None:
    """The GPU's layers also run on the CPU, slowly; their error is that of float16."""
    torch.manual_seed(2)
    weight = random_weight(128, 192, quantization)
    x = torch.randn(5, 192)

    product = gpu_linear(weight)(x)

    expected = x @ weight.dequantize(torch.float32).t()
    assert product.dtype == torch.float16
    assert float((product.float() - expected).norm() / expected.norm()) < 2e-3


@pytest.mark.parametrize("quantization", list(Quantization)[1:])
def test_fused_layers_give_the_bits_of_their_parts(quantization: Quantization) -> None:
    """Rows of several weights put together are still the same rows."""
    torch.manual_seed(3)
    parts = [random_weight(rows, 128, quantization, seed=rows) for rows in (96, 32, 64)]

    fused = concatenate_rows(parts)

    assert torch.equal(fused.dequantize(torch.float32), torch.cat([part.dequantize(torch.float32) for part in parts]))


def test_weights_stored_in_different_ways_are_not_fused() -> None:
    """One layer has one storage format."""
    with pytest.raises(ValueError, match="different ways"):
        concatenate_rows([random_weight(32, 64, Quantization.INT8), random_weight(32, 64, Quantization.NF4)])


def test_the_budget_of_resident_weights_is_shared() -> None:
    """Layers past the budget keep no float32 copy, and the ones before it do."""
    budget = ResidentBudget(4 * 100)

    assert [budget.take(300), budget.take(200), budget.take(100), budget.take(1)] == [True, False, True, False]


@pytest.mark.parametrize("double", [False, True])
def test_nf4_stands_for_what_bitsandbytes_says(double: bool) -> None:
    """Bit for bit, absmax and weights, with a number of blocks that fills no group of 256."""
    from bitsandbytes import functional

    values = torch.randn(130, 192, generator=torch.Generator().manual_seed(4)).half()
    packed, state = functional.quantize_4bit(values, blocksize=64, quant_type="nf4", compress_statistics=double)
    state.dtype = torch.float32

    weight = quantize_nf4(values, double=double)

    assert isinstance(weight, Nf4Weight)
    assert torch.equal(weight.packed, packed.flatten())
    assert torch.equal(weight.dequantize(torch.float32), functional.dequantize_4bit(packed, state))


@pytest.mark.parametrize("size", [32, 100, 256, 688, 4096])
def test_row_wise_steps_have_the_same_bits_in_any_company(size: int) -> None:
    """Norm, activation and rotation of one row among others."""
    torch.manual_seed(5)
    rowwise = PlainRowwise()
    norm, row, angles = torch.rand(size), torch.randn(size), torch.randn(size // 2)

    def steps(x: Tensor, angle: Tensor) -> list[Tensor]:
        rotated = rowwise.rotate(x[:, None], angle.cos(), angle.sin())[:, 0]
        return [rowwise.norm(x, norm, 1e-5), rowwise.gate(x), rotated]

    alone = [result[0] for result in steps(row[None], angles[None])]
    for num_rows in NUM_ROWS:
        for place in {0, num_rows // 2, num_rows - 1}:
            batch, all_angles = torch.randn(num_rows, size), torch.randn(num_rows, size // 2)
            batch[place], all_angles[place] = row, angles
            for result, lone in zip(steps(batch, all_angles), alone, strict=True):
                assert torch.equal(result[place], lone)


def test_silu_is_torchs() -> None:
    """Written out, but the same function, large values included."""
    x = torch.cat([torch.linspace(-100, 100, 4001), torch.tensor([-1e4, 1e4])])

    ours = PlainRowwise().gate(torch.cat([x, torch.ones_like(x)])[None])[0]
    assert torch.allclose(ours, torch.nn.functional.silu(x), atol=1e-6)
