"""The operators of a LlamaModel: plain on the CPU, and wherever Triton is missing or its kernels do not run."""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from tests.engine.triton_checks import QUANTIZED, small_config
from worker.engine import triton_path
from worker.engine.config import KVFormat, Quantization
from worker.engine.kernels.triton_product import MAX_ROWS, TritonProduct
from worker.engine.linear import Int8Linear, Nf4Linear, ResidentBudget, TiledLinear
from worker.engine.operators import PLAIN, choose_operators, try_triton
from worker.engine.rowwise import PlainRowwise
from worker.engine.triton_path import TritonLinear, WrongKernel, make_triton_linear
from worker.engine.weights import DenseWeight, Int8Weight, LinearWeight, Nf4Weight

CPU = torch.device("cpu")


def test_the_cpu_is_plain_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It is no loss there."""
    assert choose_operators(small_config(), Quantization.INT8, KVFormat.FLOAT, CPU, 16) is PLAIN
    assert not caplog.records


@pytest.mark.parametrize("quantization", [Quantization.NONE, *QUANTIZED])
def test_a_device_on_which_triton_does_not_run_is_plain(
    quantization: Quantization, caplog: pytest.LogCaptureFixture
) -> None:
    """This one: compiled kernels have no driver here. The log says why."""
    with caplog.at_level(logging.WARNING):
        assert try_triton(small_config(), quantization, KVFormat.INT8, CPU, 16) is PLAIN
    assert "no Triton on cpu, so torch and bitsandbytes decode there, slower: " in caplog.text


def test_without_triton_the_path_is_plain(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """torch for the CPU, or for Windows, brings none."""
    for name in [name for name in sys.modules if name.startswith("worker.engine") and "triton" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("worker.engine.triton_path")
    monkeypatch.setitem(sys.modules, "triton", None)
    with caplog.at_level(logging.WARNING):
        assert try_triton(small_config(), Quantization.NF4, KVFormat.FLOAT, CPU, 16) is PLAIN
    assert "triton" in caplog.text


def test_a_kernel_that_computes_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """NaN is something else too."""

    def multiply(product: TritonProduct, x: torch.Tensor) -> torch.Tensor:
        return torch.full((x.shape[0], product.shape[0]), torch.nan, dtype=torch.float16)

    monkeypatch.setattr(TritonProduct, "__call__", multiply)
    with pytest.raises(WrongKernel, match="the int8 product of 16 rows is off by nan"):
        triton_path.check_kernels(small_config(), Quantization.INT8, KVFormat.FLOAT, CPU, 16)
    with caplog.at_level(logging.WARNING):
        assert try_triton(small_config(), Quantization.INT8, KVFormat.FLOAT, CPU, 16) is PLAIN
    assert "off by nan" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "name"), [("", ""), ("norm", "the norm"), ("rotate", "the rotation"), ("gate", "the gate")]
)
def test_a_wrong_norm_rotation_or_gate_is_noticed(monkeypatch: pytest.MonkeyPatch, wrong: str, name: str) -> None:
    """Half a percent off, where the others are what torch says."""
    right = PlainRowwise()
    off = SimpleNamespace(norm=right.norm, rotate=right.rotate, gate=right.gate)
    if wrong:
        setattr(off, wrong, lambda *numbers: 1.005 * getattr(right, wrong)(*numbers))
    monkeypatch.setattr(triton_path, "TritonRowwise", lambda: off)
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(WrongKernel, match=name) if wrong else nullcontext():
        triton_path._check_rowwise(small_config(), generator)


def test_weights_that_the_kernels_do_not_read_get_a_plain_layer() -> None:
    """Unquantized ones, inputs that are no whole blocks of 64, and other NF4 blocks."""
    absmax = torch.ones(8)
    plain: list[LinearWeight] = [
        DenseWeight(torch.zeros(8, 64)),
        Int8Weight(torch.zeros(8, 96, dtype=torch.int8), absmax),
        Nf4Weight(torch.zeros(8 * 64, dtype=torch.uint8), absmax, (8, 128), 128),
    ]
    budget = ResidentBudget(1 << 20)
    assert all(isinstance(make_triton_linear(weight, budget), TiledLinear) for weight in plain)
    assert isinstance(make_triton_linear(Int8Weight(torch.zeros(8, 64).char(), absmax), budget), TritonLinear)


@pytest.mark.parametrize("plain", [Int8Linear, Nf4Linear])
def test_more_rows_than_the_kernels_take_go_the_plain_way(plain: type[Int8Linear | Nf4Linear]) -> None:
    """And so does a step without any, and one row of NF4: the kernels, which cannot run here, are not asked."""
    weight: Int8Weight | Nf4Weight = Int8Weight(torch.ones(8, 64).char(), torch.ones(8))
    if plain is Nf4Linear:
        weight = Nf4Weight(torch.full((8 * 32,), 255, dtype=torch.uint8), torch.ones(8), (8, 64), 64)
    layer = make_triton_linear(weight, ResidentBudget(0))
    for num_rows in (0, MAX_ROWS + 1) if plain is Int8Linear else (0, 1, MAX_ROWS + 1):
        assert layer(torch.ones(num_rows, 64)).shape == (num_rows, 8)
    with pytest.raises(RuntimeError):
        layer(torch.ones(MAX_ROWS, 64))
