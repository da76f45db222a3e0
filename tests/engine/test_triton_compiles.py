"""Every Triton kernel compiles for Ampere, Ada and Hopper without a GPU, fits there, and spills no register."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from worker.engine.kernels import triton_attention, triton_product, triton_rowwise
from worker.engine.kernels.triton_attention import attend_splits, join_pieces
from worker.engine.kernels.triton_product import int8_product, join_splits, nf4_product
from worker.engine.kernels.triton_rowwise import gate_rows, norm_rows, rotate_heads

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# Compute capability, and the shared memory that a block of threads may have there (CUDA programming guide, table of
# technical specifications): A100; RTX 30 and A10; RTX 40 and L4; H100.
MAX_SHARED_BYTES = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}

# Types of the arguments as they come at run time; sizes of a model are multiples of 16.
_X, _SUMS, _FLOATS, _LONGS, _SIZE, _ANY = "*fp16", "*fp32", "*fp32", "*i64", "i32 multiple", "i32"
_PRODUCT = {"num_rows": _ANY, "num_outputs": _SIZE, "num_inputs": _SIZE, "steps_per_split": _ANY}
_INT8 = {"x_ptr": _X, "codes_ptr": "*i8", "scale_ptr": _FLOATS, "out_ptr": _X, **_PRODUCT}
_NF4 = {
    "x_ptr": _X,
    "packed_ptr": "*u8",
    "absmax_ptr": _FLOATS,
    "table_ptr": _FLOATS,
    "out_ptr": _SUMS,
    **_PRODUCT,
}
_ATTEND = {
    **dict.fromkeys(("query_ptr", "keys_ptr", "values_ptr"), _X),
    **dict.fromkeys(("positions_ptr", "tables_ptr"), _LONGS),
    **dict.fromkeys(("mixed_ptr", "stats_ptr"), _SUMS),
    "scale": "fp32",
    "num_kv_heads": _ANY,
    "table_width": _ANY,
}
_NO_SCALES: dict[str, int | None] = {"key_scales_ptr": None, "value_scales_ptr": None}
_INT8_CACHE = {"keys_ptr": "*i8", "values_ptr": "*i8", "key_scales_ptr": _FLOATS, "value_scales_ptr": _FLOATS}
_JOIN_PIECES = {"mixed_ptr": _SUMS, "stats_ptr": _SUMS, "positions_ptr": _LONGS, "out_ptr": _X, "max_splits": _ANY}


@dataclass(frozen=True, slots=True)
class Variant:
    """A kernel with the types of its arguments and what it is compiled for."""

    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, int | None]
    num_warps: int
    num_stages: int
    instructions: str = ""


def product(kernel: Any, types: Mapping[str, str], tile: int, block_inputs: int) -> Variant:
    """A product's variant, which has to use the tensor cores."""
    constants = {"BLOCK_N": triton_product.BLOCK_OUTPUTS, "BLOCK_M": tile, "BLOCK_K": block_inputs}
    return Variant(
        kernel, types, constants, triton_product.NUM_WARPS, triton_product.NUM_STAGES, r"(mma\.sync|wgmma\.mma_async)"
    )


def attention(group: int, head_dim: int, *, is_int8: bool = False) -> Variant:
    """An attention's variant, over blocks of 16 positions."""
    constants = triton_attention.variant(group, head_dim, 16) | ({} if is_int8 else _NO_SCALES)
    types = _ATTEND | (_INT8_CACHE if is_int8 else {})
    return Variant(attend_splits, types, constants, triton_attention.NUM_WARPS, triton_attention.NUM_STAGES, "mma")


VARIANTS = {
    "int8, few rows": product(int8_product, _INT8, 16, 128),
    "int8, many rows": product(int8_product, _INT8, 64, 128),
    "NF4, few rows": product(nf4_product, _NF4, 16, 128),
    "NF4, many rows": product(nf4_product, _NF4, 64, 128),
    "NF4, inputs in 64s": product(nf4_product, _NF4, 32, 64),
    "joining splits": Variant(
        join_splits,
        {"sums_ptr": _SUMS, "out_ptr": _X, "size": _SIZE, "num_splits": _ANY},
        {"BLOCK": triton_product.JOIN_BLOCK},
        4,
        3,
    ),
    "attention of 7B": attention(1, 128),
    "attention of 70B": attention(8, 128),
    "attention over int8": attention(8, 128, is_int8=True),
    "norm of 70B": Variant(
        norm_rows,
        {"x_ptr": _FLOATS, "weight_ptr": _FLOATS, "out_ptr": _X, "size": _SIZE, "eps": "fp32"},
        {"BLOCK": 8192},
        triton_rowwise.NORM_WARPS,
        3,
    ),
    "rotation": Variant(
        rotate_heads,
        {"heads_ptr": _X, "cos_ptr": _FLOATS, "sin_ptr": _FLOATS, "out_ptr": _X, "row_stride": _ANY},
        {"HALF": 64, "DIMS": 64},
        triton_rowwise.ROTATE_WARPS,
        3,
    ),
    "gate": Variant(
        gate_rows,
        {"gate_up_ptr": _X, "out_ptr": _X, "size": _SIZE},
        {"BLOCK": triton_rowwise.GATE_BLOCK},
        triton_rowwise.GATE_WARPS,
        3,
    ),
    "joining pieces": Variant(join_pieces, _JOIN_PIECES, {"HEAD_DIM": 128, "DIMS": 128, "SPLIT": 256}, 4, 3),
}


@pytest.mark.parametrize("name", list(VARIANTS))
@pytest.mark.parametrize("capability", list(MAX_SHARED_BYTES))
def test_a_kernel_compiles_and_fits(
    capability: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a cubin, by the assembler that comes with Triton, within the shared memory there is."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    variant = VARIANTS[name]
    compiled = compile_for(variant, capability)
    assert compiled.metadata.shared <= MAX_SHARED_BYTES[capability]
    assert re.search(variant.instructions, compiled.asm["ptx"])
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    command = [str(TOOLS / "cuobjdump"), "-res-usage", str(cubin)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"(?:STACK|LOCAL):\d+", usage) == ["STACK:0", "LOCAL:0"]


def compile_for(variant: Variant, capability: int) -> Any:
    """Compile as a launch would: pointers are aligned to 16 bytes, as torch's are."""
    names: list[str] = variant.kernel.arg_names
    signature = {name: variant.types.get(name, "constexpr").split()[0] for name in names}
    aligned = [name for name, kind in variant.types.items() if kind.startswith("*") or kind == _SIZE]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(variant.kernel, signature, dict(variant.constants), attributes)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
