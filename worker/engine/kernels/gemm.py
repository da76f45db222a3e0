"""Products of activations with int8 or NF4 weights: packing at load, and the launch of gemm.cu and gemm_wide.cu.

Deterministic. A row's result depends neither on the other rows nor on its place as long as the batch stays within one
tile size (8, 16, 32, 64 or 128 rows). Between tile sizes the order of the sums may change (Tuning.num_groups), and NF4
rounds its weights instead of scaling its sums from 64 rows on (SCALE_SUMS). Above 128 rows a row's result may depend on
how many times 128 rows there are, and on which of them it is in: that decides where the sums are split. Activations
in int8 have exact sums: there a row's result depends on nothing but the row.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from worker.engine.kernels.build import SOURCES, Kernel, load_kernels, tensor_map
from worker.engine.kernels.repack import UNIT_COLUMNS, UNIT_ROWS, pack_int8, pack_nf4, pair_rows
from worker.engine.kernels.round_rows import RoundedRows
from worker.engine.weights import NF4_CODES, Int8Weight, Nf4Weight

TILE_SIZES = (8, 16, 32, 64, 128)
WIDE_ROWS = 128  # gemm_wide.cu, BATCH: above this many rows it takes over
WIDE_STAGES: Mapping[int, int] = {16: 3, 8: 4}  # by bits of an activation
WIDE_CLUSTER: Mapping[int, int] = {16: 1, 8: 2}  # blocks that share weights where there are as many tiles of rows
MAX_TAGGED_TILE = 32  # gemm.cu, TAGGED
MIN_SHARED_BYTES = 120 * 1024


@dataclass(frozen=True, slots=True)
class Tuning:
    """How one tile size is compiled.

    Attributes:
        num_stages: units in flight in shared memory per block of threads.
        num_groups: 1 or 2; with 2 the units of a block alternate between two times 256 threads.
    """

    num_stages: int
    num_groups: int


INT8_TUNING: Mapping[int, Tuning] = {
    8: Tuning(6, 1),
    16: Tuning(6, 1),
    32: Tuning(6, 2),
    64: Tuning(4, 1),
    128: Tuning(4, 1),
}
NF4_TUNING: Mapping[int, Tuning] = {
    8: Tuning(8, 2),
    16: Tuning(8, 2),
    32: Tuning(6, 2),
    64: Tuning(6, 2),
    128: Tuning(3, 1),
}


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight in repack.py's order, on the GPU.

    Attributes:
        units: [number of units, bytes of a unit] uint8.
        row_scale: [rows, padded to units] float32, absmax / 127 of int8; empty for NF4.
        shape: (N, K) as the layer has it.
        is_gate_up: rows are [gate; up] and the product is silu(gate) * up, N / 2 wide.
        bits: 8 or 4.
    """

    units: Tensor
    row_scale: Tensor
    shape: tuple[int, int]
    is_gate_up: bool
    bits: int

    @property
    def num_outputs(self) -> int:
        """Width of the product."""
        return self.shape[0] // 2 if self.is_gate_up else self.shape[0]


def pack(weight: Int8Weight | Nf4Weight, *, is_gate_up: bool = False) -> PackedWeight:
    """Move a weight's bytes into the kernel's order, on the weight's device. The original may be freed after.

    Raises ValueError for a shape or block size that the kernel does not take: K must be a multiple of 64.
    """
    rows, columns = weight.shape
    if columns % 64:
        raise ValueError(f"the kernel takes inputs in blocks of 64, not {columns}")
    if isinstance(weight, Int8Weight):
        codes, scale = weight.codes, weight.row_absmax.float() / 127
        if is_gate_up:
            codes, scale = pair_rows(codes), pair_rows(scale)
        scale = torch.nn.functional.pad(scale, (0, -scale.shape[0] % UNIT_ROWS)).contiguous()
        return PackedWeight(pack_int8(codes), scale, (rows, columns), is_gate_up, 8)
    if weight.block_size != 64:
        raise ValueError(f"the kernel takes NF4 in blocks of 64, not {weight.block_size}")
    packed = weight.packed.view(rows, columns // 2)
    absmax = weight.flat_absmax().float().view(rows, columns // 64)
    if is_gate_up:
        packed, absmax = pair_rows(packed), pair_rows(absmax)
    return PackedWeight(pack_nf4(packed, absmax), absmax.new_empty(0), (rows, columns), is_gate_up, 4)


class GemmWorkspace:
    """Where the products of one stream leave partial sums for each other. Two streams need two of these.

    Invariant: between launches every tag and flag is zero.
    """

    def __init__(self, device: torch.device) -> None:
        self.num_blocks = torch.cuda.get_device_properties(device).multi_processor_count
        sums = self.num_blocks * UNIT_ROWS
        self.tagged = torch.zeros(2 * sums * MAX_TAGGED_TILE, dtype=torch.int32, device=device)
        self.plain = torch.empty(2 * sums * WIDE_ROWS, device=device)  # a wide tile has two units' outputs
        self.flags = torch.zeros(self.num_blocks, dtype=torch.int32, device=device)

    def check(self) -> None:
        """Raise AssertionError if a launch left a flag set. Waits for the device."""
        assert not self.flags.any(), "a product left a flag set"
        assert not self.tagged.any(), "a product left a sum unread"


class QuantizedGemm:
    """y = x @ w.T for one packed weight; for gate_up, y = silu(x @ gate.T) * (x @ up.T)."""

    def __init__(
        self, weight: PackedWeight, workspace: GemmWorkspace, tuning: Mapping[int, Tuning] | None = None
    ) -> None:
        self.weight = weight
        self._workspace = workspace
        self._tuning = tuning or (INT8_TUNING if weight.bits == 8 else NF4_TUNING)
        self._chunks = -(-weight.shape[1] // UNIT_COLUMNS)

    def __call__(self, x: Tensor, out: Tensor, *, overlap: bool = False) -> Tensor:
        """Multiply [M, K] into out [M, num_outputs], both fp16 and contiguous; returns out. `overlap`: see package."""
        assert x.dtype == out.dtype == torch.float16
        assert x.is_contiguous()
        assert out.is_contiguous()
        assert x.shape[1] == self.weight.shape[1]
        assert out.shape == (x.shape[0], self.weight.num_outputs)
        if x.shape[0] > max(self._tuning):
            self._launch_wide(x, None, out, overlap)
        else:
            self._launch(x, out, overlap)
        return out

    def multiply_rounded(self, x: RoundedRows, out: Tensor, *, overlap: bool = False) -> Tensor:
        """The same product of rows in int8, of any number: on the int8 tensor cores; int8 weights only.

        The sums are exact, each times its two scales in float32.
        """
        assert self.weight.bits == 8
        assert x.codes.is_contiguous()
        assert out.is_contiguous()
        assert x.codes.shape[1] == self.weight.shape[1]
        assert out.shape == (x.codes.shape[0], self.weight.num_outputs)
        assert x.scale.numel() >= x.codes.shape[0]
        assert x.scale.numel() % WIDE_ROWS == 0, "the kernel reads whole tiles of scales"
        self._launch_wide(x.codes, x.scale, out, overlap)
        return out

    def _launch(self, x: Tensor, out: Tensor, overlap: bool) -> None:
        weight, workspace = self.weight, self._workspace
        tile = min(size for size in self._tuning if size >= x.shape[0])
        num_units = weight.units.shape[0]
        tuning = self._tuning[tile]
        kernel = _load(x.device.index, weight.bits, tile, weight.is_gate_up, tuning)
        kernel.launch(
            (min(workspace.num_blocks, num_units), 1, 1),
            256 * tuning.num_groups + 32,
            (
                tensor_map(x, tile),
                ctypes.c_void_p(weight.units.data_ptr()),
                ctypes.c_void_p(weight.row_scale.data_ptr()),
                ctypes.c_void_p(out.data_ptr()),
                ctypes.c_void_p(workspace.tagged.data_ptr()),
                ctypes.c_void_p(workspace.plain.data_ptr()),
                ctypes.c_void_p(workspace.flags.data_ptr()),
                ctypes.c_int(x.shape[0]),
                ctypes.c_int(weight.num_outputs),
                ctypes.c_int(num_units),
                ctypes.c_int(self._chunks),
            ),
            overlap=overlap,
        )

    def _launch_wide(self, x: Tensor, x_scale: Tensor | None, out: Tensor, overlap: bool) -> None:
        weight, workspace = self.weight, self._workspace
        output_tiles = weight.units.shape[0] // self._chunks
        row_tiles, x_bits = -(-x.shape[0] // WIDE_ROWS), 16 if x_scale is None else 8
        cluster = WIDE_CLUSTER[x_bits] if row_tiles % WIDE_CLUSTER[x_bits] == 0 else 1
        num_units = -(-output_tiles // 2) * (row_tiles // cluster) * self._chunks
        _load_wide(x.device.index, weight.bits, weight.is_gate_up, x_bits, cluster).launch(
            (min(workspace.num_blocks // cluster, num_units) * cluster, 1, 1),
            3 * 128,
            (
                tensor_map(x, WIDE_ROWS),
                ctypes.c_void_p(weight.units.data_ptr()),
                ctypes.c_void_p(weight.row_scale.data_ptr()),
                ctypes.c_void_p(out.data_ptr()),
                ctypes.c_void_p(workspace.plain.data_ptr()),
                ctypes.c_void_p(workspace.flags.data_ptr()),
                ctypes.c_int(x.shape[0]),
                ctypes.c_int(weight.num_outputs),
                ctypes.c_int(output_tiles),
                ctypes.c_int(self._chunks),
                ctypes.c_void_p(0 if x_scale is None else x_scale.data_ptr()),
            ),
            overlap=overlap,
        )


def source_of(bits: int, tile: int, is_gate_up: bool, tuning: Tuning) -> tuple[dict[str, int], str, int]:
    """Macros, text before gemm.cu, and bytes of shared memory of one variant."""
    defines = {
        "FORMAT": bits,
        "BATCH": tile,
        "STAGES": tuning.num_stages,
        # More, and what is loaded early slows the blocks of the product before, which all must wait for.
        "EARLY_STAGES": tuning.num_stages // 2,
        "K_GROUPS": tuning.num_groups,
        "SILU": int(is_gate_up),
        # For few rows of x it is cheaper, and more exact, to scale the sums of 64 inputs than the NF4 weights.
        "SCALE_SUMS": int(bits == 4 and tile <= 32),
        "X_BITS": 16,
    }
    prelude = _prelude(tile) + _wgmma(tile, "wgmma_first", 0) + _shared_text()
    unit_bytes = 16384 if bits == 8 else 9216
    shared = tuning.num_stages * (unit_bytes + 256 * tile + 16) + (32768 if bits == 4 else 0) + 1024
    shared += 512 * tile if tuning.num_groups == 2 else 0
    # More than half of a multiprocessor's, so that its blocks spread evenly: two of one product would never share one.
    return defines, prelude, max(shared, MIN_SHARED_BYTES)


def wide_source_of(bits: int, is_gate_up: bool, x_bits: int = 16, cluster: int = 1) -> tuple[dict[str, int], str, int]:
    """Macros, text before gemm_wide.cu, and bytes of shared memory of one variant."""
    num_stages = WIDE_STAGES[x_bits]
    defines = {"FORMAT": bits, "X_BITS": x_bits, "CLUSTER": cluster, "STAGES": num_stages, "SILU": int(is_gate_up)}
    defines["SCALE_SUMS"] = 0
    stage_bytes = 16 * x_bits * WIDE_ROWS + 2 * (16384 if bits == 8 else 9216) + 16
    shared = num_stages * stage_bytes + (32768 if bits == 4 else 0) + 1024
    return defines, _prelude(WIDE_ROWS, x_bits) + _shared_text(), shared


@cache
def _load_wide(device_index: int, bits: int, is_gate_up: bool, x_bits: int, cluster: int) -> Kernel:
    defines, prelude, shared = wide_source_of(bits, is_gate_up, x_bits, cluster)
    with torch.cuda.device(device_index):
        return load_kernels("gemm_wide.cu", defines, prelude, {"quantized_gemm_wide": shared})["quantized_gemm_wide"]


def _prelude(tile: int, x_bits: int = 16) -> str:
    halves = ", ".join(str(struct.unpack("<H", struct.pack("<e", code))[0]) for code in NF4_CODES)
    return f"__constant__ u16 NF4[16] = {{{halves}}};\n" + _wgmma(tile, "wgmma", 1, x_bits)


def _shared_text() -> str:
    return (SOURCES / "weights.cuh").read_text()


@cache
def _load(device_index: int, bits: int, tile: int, is_gate_up: bool, tuning: Tuning) -> Kernel:
    defines, prelude, shared = source_of(bits, tile, is_gate_up, tuning)
    with torch.cuda.device(device_index):
        return load_kernels("gemm.cu", defines, prelude, {"quantized_gemm": shared})["quantized_gemm"]


def _wgmma(tile: int, name: str, adds: int, x_bits: int = 16) -> str:
    """Device function `name`: d (+)= a x for a step of 32 bytes of x; a in registers, x described by a descriptor."""
    count = tile // 2
    is_int8 = x_bits == 8
    kind, number, bound = ("k32.s32.s8.s8", "int", "r") if is_int8 else ("k16.f32.f16.f16", "float", "f")
    scales = f"{adds}" if is_int8 else f"{adds}, 1, 1, 0"  # whole numbers have no signs or order of x to choose
    sums = ", ".join(f"%{i}" for i in range(count))
    outputs = ", ".join(f'"{"+" if adds else "="}{bound}"(d[{i}])' for i in range(count))
    a = ", ".join(f"%{count + i}" for i in range(4))
    inputs = ", ".join(f'"r"(a[{i}])' for i in range(4))
    return (
        f"DEVICE void {name}({number}* d, const u32* a, u64 x) {{\n"
        f'  asm volatile("wgmma.mma_async.sync.aligned.m64n{tile}{kind} {{{sums}}}, {{{a}}}, %{count + 4}, '
        f'{scales};" : {outputs} : {inputs}, "l"(x));\n}}\n'
    )
