"""Every variant of the GPU kernels that Llama 2 needs compiles for Hopper, without a GPU and without headers."""

from __future__ import annotations

import pytest

from worker.engine.kernels import rowwise
from worker.engine.kernels.attention import Variant
from worker.engine.kernels.build import KernelBuildError, compile_source, source_text
from worker.engine.kernels.gemm import INT8_TUNING, NF4_TUNING, TILE_SIZES, source_of, wide_source_of

MAX_SHARED_BYTES = 227 * 1024  # of one block of threads on a Hopper multiprocessor


@pytest.mark.parametrize("is_gate_up", [False, True])
@pytest.mark.parametrize("tile", TILE_SIZES)
@pytest.mark.parametrize("bits", [8, 4])
def test_a_product_compiles_and_fits(bits: int, tile: int, is_gate_up: bool) -> None:
    """Its stages fit in shared memory, and its code uses the tensor cores' warpgroup instruction."""
    tuning = (INT8_TUNING if bits == 8 else NF4_TUNING)[tile]
    defines, prelude, shared_bytes = source_of(bits, tile, is_gate_up, tuning)
    assert shared_bytes <= MAX_SHARED_BYTES
    assert compile_source(source_text("gemm.cu", defines, prelude), "sm_90a", "gemm.cu").startswith(b"\x7fELF")


@pytest.mark.parametrize("has_codes", [False, True])
@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("buffers", [2, 4])
@pytest.mark.parametrize("group", [1, 8])
def test_attention_compiles_and_fits(group: int, buffers: int, is_fused: bool, has_codes: bool) -> None:
    """For each number of query heads per key-value head among Llama 2's sizes, and each format of the KV cache."""
    defines, prelude, shared_bytes = Variant(group, 256, buffers, is_fused, has_codes).source()
    num_blocks = {2: 5, 4: 3}[buffers] if has_codes else 1  # MIN_BLOCKS of kv_int8.cuh
    assert shared_bytes <= MAX_SHARED_BYTES // num_blocks
    text = source_text("attention.cu", defines, prelude)
    assert compile_source(text, "sm_90a", "attention.cu").startswith(b"\x7fELF")


@pytest.mark.parametrize("is_gate_up", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_product_of_many_rows_compiles_and_fits(bits: int, is_gate_up: bool) -> None:
    """For prefill."""
    defines, prelude, shared_bytes = wide_source_of(bits, is_gate_up)
    assert shared_bytes <= MAX_SHARED_BYTES
    text = source_text("gemm_wide.cu", defines, prelude)
    assert compile_source(text, "sm_90a", "gemm_wide.cu").startswith(b"\x7fELF")


@pytest.mark.parametrize("is_gate_up", [False, True])
@pytest.mark.parametrize("cluster", [1, 2])
def test_a_product_of_int8_activations_compiles_and_fits(cluster: int, is_gate_up: bool) -> None:
    """By the instruction of the int8 tensor cores, with whole numbers as sums; blocks alone, and in teams."""
    defines, prelude, shared_bytes = wide_source_of(8, is_gate_up, 8, cluster)
    assert shared_bytes <= MAX_SHARED_BYTES
    assert "k32.s32.s8.s8" in prelude
    text = source_text("gemm_wide.cu", defines, prelude)
    assert compile_source(text, "sm_90a", "gemm_wide.cu").startswith(b"\x7fELF")


@pytest.mark.parametrize("columns", [4096, 28672])
def test_rounding_activations_compiles(columns: int) -> None:
    """For inputs of few and of many."""
    text = source_text("round_rows.cu", {"COLUMNS": columns}, "")
    assert compile_source(text, "sm_90a", "round_rows.cu").startswith(b"\x7fELF")


@pytest.mark.parametrize("hidden", [4096, 5120, 8192])
def test_the_small_kernels_compile(hidden: int) -> None:
    """For each hidden size of Llama 2."""
    text = source_text("rowwise.cu", *rowwise.source_of(hidden))
    assert compile_source(text, "sm_90a", "rowwise.cu").startswith(b"\x7fELF")


def test_the_choice_of_tokens_compiles() -> None:
    """For any vocabulary."""
    assert compile_source(source_text("choose.cu", {}, ""), "sm_90a", "choose.cu").startswith(b"\x7fELF")


def test_what_does_not_compile_is_refused_with_the_compilers_words() -> None:
    """The error names the file and carries the log."""
    with pytest.raises(KernelBuildError, match=r"broken\.cu: broken\.cu\(1\): error"):
        compile_source("this is no CUDA\n", "sm_90a", "broken.cu")
