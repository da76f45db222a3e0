"""Times the engine's kernels against the memory: each layer of Llama 2 7B alone, and a whole decode step.

    python -m bench.kernels --out bench/kernels.json
    python -m bench.kernels --tables product attention --batches 1 8 64 --out few.json
    python -m bench.kernels --tables attention step --kv-format float int8 --out kv.json

Every time is a median over replays of a CUDA graph whose calls walk through more weights than the L2 holds. The limit
is bytes (weights and KV cache as stored, activations not counted) over the copy bandwidth measured in the same run.
Beside the engine's Hopper kernels stand those of other GPUs, in Triton, cuBLAS in fp16, and bitsandbytes where it is
installed. `rounded_us` is the product of activations in int8, `rounding_us` what makes them so; above 128 rows, int8
weights only.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.device import copy_bandwidth
from bench.models import kv_bytes, random_weight
from bench.report import Report
from worker.engine.config import KVFormat, LlamaConfig, Quantization
from worker.engine.kernels.attention import BLOCK_SIZE, SPLIT, DecodeAttention
from worker.engine.kernels.choose import TokenChooser
from worker.engine.kernels.gemm import WIDE_ROWS, GemmWorkspace, PackedWeight, QuantizedGemm, pack
from worker.engine.kernels.round_rows import RoundedRows, round_rows
from worker.engine.kernels.rowwise import Scales, add_rms_norm
from worker.engine.kernels.triton_attention import decode_attention
from worker.engine.kernels.triton_product import MAX_ROWS, TritonProduct
from worker.engine.linear import Nf4Linear
from worker.engine.weights import Int8Weight

LAYERS = {"qkv": (12288, 4096), "o": (4096, 4096), "gate_up": (22016, 4096), "down": (4096, 11008)}
BATCHES = (1, 8, 16, 32, 64, 128, 256, 512, 2048)  # above 128: prefill
STEPS = ((192, 1), (192, 8), (192, 32), (192, 64), (192, 128), (2048, 1), (2048, 8), (2048, 32))  # context, batch
NUM_LAYERS, HEADS, VOCAB = 32, 32, 32000
ROTATED_BYTES = 400e6
CUDA = torch.device("cuda", 0)
LAYER = LlamaConfig(4096, 11008, 1, HEADS, HEADS, 128, VOCAB, 4096, 1e-5, 1e4, False, "float16", Quantization.NONE)

Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds a call: median over replays, and (largest - smallest) / median."""

    us: float
    spread: float


def time_calls(calls: Sequence[Callable[[], object]], repeats: int = 9) -> Timing:
    """The calls are captured in one graph, in order, and the graph is replayed."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times: list[float] = []
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    for _ in range(repeats):
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / len(calls))
    median = statistics.median(times)
    return Timing(median, (max(times) - min(times)) / median)


def copies(weight: PackedWeight, count: int) -> list[PackedWeight]:
    """The same weight at `count` places in memory."""
    scale, shape = weight.row_scale, weight.shape
    return [PackedWeight(weight.units.clone(), scale, shape, weight.is_gate_up, weight.bits) for _ in range(count)]


def time_gemm(weights: list[PackedWeight], rows: int, overlap: bool) -> Timing:
    """One product over rotated weights."""
    workspace = GemmWorkspace(CUDA)
    x = torch.randn(rows, weights[0].shape[1], device=CUDA).half()
    out = torch.empty(rows, weights[0].num_outputs, device=CUDA, dtype=torch.float16)
    gemms = [QuantizedGemm(weight, workspace) for weight in weights]
    calls = [partial(gemm, x, out, overlap=overlap) for gemm in gemms]
    return time_calls(calls * max(1, 24 // len(calls)))


def time_rounded(weights: list[PackedWeight], rows: int) -> tuple[float | None, float | None]:
    """Microseconds of a product of int8 activations over rotated weights, and of rounding them; overlapped."""
    if rows <= WIDE_ROWS or weights[0].bits != 8:
        return None, None
    workspace = GemmWorkspace(CUDA)
    x = torch.randn(rows, weights[0].shape[1], device=CUDA).half()
    rounded = round_rows(x, RoundedRows.empty(rows, x.shape[1], CUDA))
    out = torch.empty(rows, weights[0].num_outputs, device=CUDA, dtype=torch.float16)
    products = [
        partial(QuantizedGemm(each, workspace).multiply_rounded, rounded, out, overlap=True) for each in weights
    ]
    rounding = partial(round_rows, x, rounded, overlap=True)
    return time_calls(products * max(1, 24 // len(products))).us, time_calls([rounding] * 24).us


def time_fp16(shape: tuple[int, int], rows: int) -> float:
    """Microseconds of cuBLAS in fp16 over rotated weights."""
    count = max(2, round(ROTATED_BYTES / (2 * shape[0] * shape[1])))
    weights = [torch.randn(shape, device=CUDA, dtype=torch.float16) for _ in range(count)]
    x = torch.randn(rows, shape[1], device=CUDA).half()
    return time_calls([partial(F.linear, x, weight) for weight in weights] * max(1, 24 // count)).us


def time_bitsandbytes(bits: int, shape: tuple[int, int], rows: int) -> float | None:
    """Microseconds of bitsandbytes' own product (int8: threshold 0, activations quantized), or None without it."""
    try:
        import bitsandbytes
    except ImportError:
        return None
    count = max(2, round(ROTATED_BYTES * (1 if bits == 8 else 0.6) / (shape[0] * shape[1])))
    x = torch.randn(rows, shape[1], device=CUDA).half()
    calls: list[Callable[[], object]] = []
    for _ in range(count):
        weight = random_weight(bits, *shape, CUDA)
        if isinstance(weight, Int8Weight):

            def multiply(weight: Int8Weight = weight) -> object:
                codes, stats, _ = bitsandbytes.functional.int8_vectorwise_quant(x)
                ops = torch.ops.bitsandbytes
                return ops.int8_scaled_mm.default(codes, weight.codes, stats, weight.row_absmax, dtype=torch.float16)

            calls.append(multiply)
        else:
            calls.append(partial(Nf4Linear(weight), x))
    return time_calls(calls * max(1, 24 // count)).us


def time_triton(bits: int, shape: tuple[int, int], rows: int) -> float | None:
    """Microseconds of the product for other GPUs, over rotated weights, or None for more rows than it takes."""
    if rows > MAX_ROWS:
        return None
    count = max(2, round(ROTATED_BYTES * (1 if bits == 8 else 0.6) / (shape[0] * shape[1])))
    num_multiprocessors = torch.cuda.get_device_properties(CUDA).multi_processor_count
    products = [TritonProduct(random_weight(bits, *shape, CUDA), num_multiprocessors) for _ in range(count)]
    x = torch.randn(rows, shape[1], device=CUDA).half()
    return time_calls([partial(product, x) for product in products] * max(1, 24 // count)).us


def product_rows(bandwidth: float, batches: Sequence[int], _: Sequence[KVFormat]) -> Iterator[Row]:
    """One row per format, layer and batch."""
    for bits in (8, 4):
        for name, shape in LAYERS.items():
            packed = pack(random_weight(bits, *shape, CUDA), is_gate_up=name == "gate_up")
            weights = copies(packed, max(2, round(ROTATED_BYTES / packed.units.nbytes)))
            limit = packed.units.nbytes / bandwidth * 1e6
            for batch in batches:
                alone, chained = (time_gemm(weights, batch, overlap) for overlap in (False, True))
                row: Row = {"bits": bits, "layer": name, "batch": batch, "limit_us": limit, "us": alone.us}
                row |= {"overlapped_us": chained.us, "spread": chained.spread, "share": limit / chained.us}
                row["rounded_us"], row["rounding_us"] = time_rounded(weights, batch)
                row |= {"triton_us": time_triton(bits, shape, batch), "cublas_fp16_us": time_fp16(shape, batch)}
                yield row | {"bnb_us": time_bitsandbytes(bits, shape, batch)}


@dataclass(frozen=True, slots=True)
class Cache:
    """Keys and values of one layer."""

    keys: Tensor
    values: Tensor
    scales: Scales | None


def random_cache(kv_format: KVFormat, num_blocks: int) -> Cache:
    """Full of numbers of about 1."""
    shape = (num_blocks, BLOCK_SIZE, HEADS, 128)
    if kv_format is KVFormat.FLOAT:
        keys, values = (torch.randn(shape, device=CUDA, dtype=torch.float16) for _ in range(2))
        return Cache(keys, values, None)
    keys, values = (torch.randint(-127, 128, shape, device=CUDA, dtype=torch.int8) for _ in range(2))
    of_keys, of_values = ((torch.rand(num_blocks, HEADS, BLOCK_SIZE, device=CUDA) + 0.5) / 64 for _ in range(2))
    return Cache(keys, values, (of_keys, of_values))


def attention_rows(bandwidth: float, batches: Sequence[int], kv_formats: Sequence[KVFormat]) -> Iterator[Row]:
    """Decode attention of one layer, rotary embedding and the new position's write included in ours alone."""
    for kv_format, (context, batch) in product(kv_formats, [step for step in STEPS if step[1] in batches]):
        blocks = -(-context // BLOCK_SIZE)
        num_bytes = kv_bytes(LAYER, kv_format, batch * context)
        caches = [random_cache(kv_format, batch * blocks) for _ in range(max(2, round(ROTATED_BYTES / num_bytes)))]
        angles = torch.outer(torch.arange(4096).float(), 10000.0 ** (-torch.arange(64) / 64)).to(CUDA)
        ours = DecodeAttention(HEADS, HEADS, batch, context, angles.cos(), angles.sin())
        qkv = torch.randn(batch, 3 * HEADS * 128, device=CUDA).half()
        query = qkv[:, : HEADS * 128].reshape(batch, HEADS, 128).contiguous()
        tables = torch.randperm(batch * blocks, device=CUDA).view(batch, blocks)
        positions = torch.full((batch,), context - 1, device=CUDA)
        mixed = torch.empty(batch, HEADS * 128, device=CUDA, dtype=torch.float16)
        at, blocks_of = positions.int(), tables.int()
        ours_calls = [
            partial(ours, qkv, cache.keys, cache.values, at, blocks_of, mixed, max_context=context, scales=cache.scales)
            for cache in caches
        ]
        triton_calls = [
            partial(decode_attention, query, cache.keys, cache.values, of_keys, of_values, positions, tables, context)
            for cache in caches
            for of_keys, of_values in [cache.scales or (None, None)]
        ]
        ours_us, triton_us = time_calls(ours_calls * 4).us, time_calls(triton_calls * 4).us
        limit = num_bytes / bandwidth * 1e6
        row: Row = {"kv": kv_format.value, "context": context, "batch": batch}
        row |= {"limit_us": limit, "us": ours_us, "triton_us": triton_us}
        yield row | {"share": limit / ours_us, "triton_share": limit / triton_us}


class Step:
    """A decode step of Llama 2 7B's shape over random weights: every kernel, in the order of the model."""

    def __init__(self, bits: int) -> None:
        self.layers = [
            {name: QuantizedGemm(weight, workspace()) for name, weight in layer.items()} for layer in make_layers(bits)
        ]
        self.norm = torch.ones(4096, device=CUDA)
        self.head = torch.randn(VOCAB, 4096, device=CUDA, dtype=torch.float16) * 0.02
        angles = torch.outer(torch.arange(4096).float(), 10000.0 ** (-torch.arange(64) / 64)).to(CUDA)
        self.cos, self.sin = angles.cos(), angles.sin()

    def prepare(self, batch: int, context: int, kv_format: KVFormat, split: int = SPLIT) -> None:
        """Buffers of one batch size, every sequence at the same context."""
        blocks = -(-context // BLOCK_SIZE)
        self.attention = DecodeAttention(HEADS, HEADS, batch, context, self.cos, self.sin, split)
        self.context = context
        self.kv_format = kv_format
        self.kv: list[Cache] = []  # else the one before is there while the next is made
        self.kv = [random_cache(kv_format, batch * blocks) for _ in range(NUM_LAYERS)]
        self.tables = torch.randperm(batch * blocks, device=CUDA).int().view(batch, blocks)
        self.positions = torch.full((batch,), context - 1, dtype=torch.int32, device=CUDA)
        self.residual = torch.randn(batch, 4096, device=CUDA)
        widths = {"x": 4096, "qkv": 12288, "mixed": 4096, "delta": 4096, "mlp": 11008}
        self.buffers = {name: torch.zeros(batch, n, device=CUDA, dtype=torch.float16) for name, n in widths.items()}
        self.chooser = TokenChooser(CUDA, batch)

    def run(self, parts: frozenset[str], overlap: bool) -> None:
        """One step of the named parts; all of them is the model."""
        b = self.buffers
        delta: Tensor | None = None
        for index, layer in enumerate(self.layers):
            if "norm" in parts:
                add_rms_norm(self.residual, delta, self.norm, 1e-5, b["x"], overlap=overlap and index > 0)
            if "gemm" in parts:
                layer["qkv"](b["x"], b["qkv"], overlap=overlap)
            if "attention" in parts:
                self.attention(
                    b["qkv"],
                    self.kv[index].keys,
                    self.kv[index].values,
                    self.positions,
                    self.tables,
                    b["mixed"],
                    max_context=self.context,
                    scales=self.kv[index].scales,
                    overlap=overlap,
                )
            if "gemm" in parts:
                layer["o"](b["mixed"], b["delta"], overlap=overlap)
            if "norm" in parts:
                add_rms_norm(self.residual, b["delta"], self.norm, 1e-5, b["x"], overlap=overlap)
            if "gemm" in parts:
                layer["gate_up"](b["x"], b["mlp"], overlap=overlap)
                layer["down"](b["mlp"], b["delta"], overlap=overlap)
            delta = b["delta"]
        if "head" in parts:
            self.chooser.launch(F.linear(b["x"], self.head))

    def bytes_read(self, batch: int) -> float:
        """Weights, head and KV cache, each once."""
        weights = sum(gemm.weight.units.nbytes for layer in self.layers for gemm in layer.values())
        return weights + self.head.nbytes + NUM_LAYERS * kv_bytes(LAYER, self.kv_format, batch * self.context)


_workspaces: list[GemmWorkspace] = []


def workspace() -> GemmWorkspace:
    """The one workspace of the one stream."""
    if not _workspaces:
        _workspaces.append(GemmWorkspace(CUDA))
    return _workspaces[0]


def make_layers(bits: int) -> list[dict[str, PackedWeight]]:
    """All layers' packed weights."""
    once = {
        name: pack(random_weight(bits, *shape, CUDA), is_gate_up=name == "gate_up") for name, shape in LAYERS.items()
    }
    spread = {name: copies(weight, NUM_LAYERS) for name, weight in once.items()}
    return [{name: weights[index] for name, weights in spread.items()} for index in range(NUM_LAYERS)]


def step_rows(bandwidth: float, batches: Sequence[int], kv_formats: Sequence[KVFormat]) -> Iterator[Row]:
    """One row per formats, context and batch: a whole step, and its parts alone."""
    whole = frozenset({"norm", "gemm", "attention", "head"})
    for bits in (8, 4):
        step = Step(bits)
        for kv_format, (context, batch) in product(kv_formats, [each for each in STEPS if each[1] in batches]):
            step.prepare(batch, context, kv_format)
            row: Row = {"bits": bits, "kv": kv_format.value, "batch": batch, "context": context}
            chained = time_calls([partial(step.run, whole, overlap=True)])
            row["ms"], row["spread"] = chained.us / 1e3, chained.spread
            row["ms_without_overlap"] = time_calls([partial(step.run, whole, overlap=False)]).us / 1e3
            for part in sorted(whole):
                row[f"{part}_ms"] = time_calls([partial(step.run, frozenset({part}), overlap=True)]).us / 1e3
            seconds = chained.us * 1e-6
            row["tokens_per_s"] = batch / seconds
            row["share"] = step.bytes_read(batch) / bandwidth / seconds
            yield row
        del step
        torch.cuda.empty_cache()


TABLES: dict[str, Callable[[float, Sequence[int], Sequence[KVFormat]], Iterator[Row]]] = {
    "step": step_rows,
    "product": product_rows,
    "attention": attention_rows,
}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--kv-format", nargs="+", choices=[each.value for each in KVFormat], default=["float"])
    parser.add_argument("--out", type=Path, required=True, help="JSON; the tables go beside it, as Markdown")
    options = parser.parse_args()
    bandwidth = copy_bandwidth(CUDA)
    name = torch.cuda.get_device_name(CUDA)
    report = Report(options.out, device=name, torch=torch.__version__, copy_tb_per_s=bandwidth / 1e12)
    with torch.inference_mode():
        for table in options.tables:
            for row in TABLES[table](bandwidth, options.batches, list(map(KVFormat, options.kv_format))):
                report.row(table, row)


if __name__ == "__main__":
    main()
