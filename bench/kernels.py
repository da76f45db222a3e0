"""Times the engine's kernels against the memory: each layer of Llama 2 7B alone, and a whole decode step.

    python -m bench.kernels --out bench/kernels.json

Every time is a median over replays of a CUDA graph whose calls walk through more weights than the L2 holds. The limit
is bytes (weights as stored, activations not counted) over the copy bandwidth measured in the same run. cuBLAS fp16 is
timed beside, and bitsandbytes where it is installed. Prints tables and writes every number to --out.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.engine.kernels.attention import SPLIT, DecodeAttention
from worker.engine.kernels.choose import TokenChooser
from worker.engine.kernels.gemm import GemmWorkspace, PackedWeight, QuantizedGemm, pack
from worker.engine.kernels.rowwise import add_rms_norm
from worker.engine.weights import Int8Weight, Nf4Weight

LAYERS = {"qkv": (12288, 4096), "o": (4096, 4096), "gate_up": (22016, 4096), "down": (4096, 11008)}
BATCHES = (1, 8, 16, 32, 64, 128, 256, 512, 2048)  # above 128: prefill
STEPS = ((192, 1), (192, 8), (192, 32), (192, 64), (192, 128), (2048, 1), (2048, 8), (2048, 32))  # context, batch
NUM_LAYERS, HEADS, VOCAB = 32, 32, 32000
ROTATED_BYTES = 400e6
CUDA = torch.device("cuda", 0)

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


def copy_bandwidth() -> float:
    """Bytes per second of a device copy (negated on the way, so that a kernel makes it), read and written counted."""
    source = torch.randn(2**30, device=CUDA)
    target = torch.empty_like(source)
    return 2 * source.nbytes / (time_calls([partial(torch.neg, source, out=target)] * 3).us * 1e-6)


def random_weight(bits: int, rows: int, columns: int) -> Int8Weight | Nf4Weight:
    """Random bytes of a layer."""
    if bits == 8:
        codes = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, device=CUDA)
        return Int8Weight(codes, (torch.rand(rows, device=CUDA) + 0.5) * columns**-0.5)
    packed = torch.randint(0, 256, (rows * columns // 2,), dtype=torch.uint8, device=CUDA)
    absmax = (torch.rand(rows * columns // 64, device=CUDA) + 0.5) * columns**-0.5
    return Nf4Weight(packed, absmax, (rows, columns), 64)


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
    from worker.engine.linear import Nf4Linear

    count = max(2, round(ROTATED_BYTES * (1 if bits == 8 else 0.6) / (shape[0] * shape[1])))
    x = torch.randn(rows, shape[1], device=CUDA).half()
    calls: list[Callable[[], object]] = []
    for _ in range(count):
        weight = random_weight(bits, *shape)
        if isinstance(weight, Int8Weight):

            def multiply(weight: Int8Weight = weight) -> object:
                codes, stats, _ = bitsandbytes.functional.int8_vectorwise_quant(x)
                ops = torch.ops.bitsandbytes
                return ops.int8_scaled_mm.default(codes, weight.codes, stats, weight.row_absmax, dtype=torch.float16)

            calls.append(multiply)
        else:
            calls.append(partial(Nf4Linear(weight), x))
    return time_calls(calls * max(1, 24 // count)).us


def gemm_rows(bandwidth: float) -> list[Row]:
    """One row per format, layer and batch."""
    rows: list[Row] = []
    for bits in (8, 4):
        for name, shape in LAYERS.items():
            packed = pack(random_weight(bits, *shape), is_gate_up=name == "gate_up")
            weights = copies(packed, max(2, round(ROTATED_BYTES / packed.units.nbytes)))
            limit = packed.units.nbytes / bandwidth * 1e6
            for batch in BATCHES:
                alone, chained = (time_gemm(weights, batch, overlap) for overlap in (False, True))
                row: Row = {"bits": bits, "layer": name, "batch": batch, "limit_us": limit, "us": alone.us}
                row |= {"overlapped_us": chained.us, "spread": chained.spread, "share": limit / chained.us}
                row |= {"cublas_fp16_us": time_fp16(shape, batch), "bnb_us": time_bitsandbytes(bits, shape, batch)}
                rows.append(row)
                print_row(row)
    return rows


def print_row(row: Row) -> None:
    """One line."""
    print(" ".join(f"{key}={value:.3g}" if isinstance(value, float) else str(value) for key, value in row.items()))


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

    def prepare(self, batch: int, context: int, split: int = SPLIT) -> None:
        """Buffers of one batch size, every sequence at the same context."""
        blocks = -(-context // 64)
        self.attention = DecodeAttention(HEADS, HEADS, batch, context, self.cos, self.sin, split)
        self.context = context
        shape = (NUM_LAYERS, 2, batch * blocks, 64, HEADS, 128)
        self.kv = torch.randn(shape[2:], device=CUDA, dtype=torch.float16).expand(shape).contiguous()
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
                keys, values = self.kv[index]
                self.attention(
                    b["qkv"],
                    keys,
                    values,
                    self.positions,
                    self.tables,
                    b["mixed"],
                    max_context=self.context,
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
        return weights + self.head.nbytes + batch * self.context * NUM_LAYERS * 2 * 4096 * 2


_workspaces: list[GemmWorkspace] = []


def workspace() -> GemmWorkspace:
    """The one workspace of the one stream."""
    if not _workspaces:
        _workspaces.append(GemmWorkspace(CUDA))
    return _workspaces[0]


def make_layers(bits: int) -> list[dict[str, PackedWeight]]:
    """All layers' packed weights."""
    once = {name: pack(random_weight(bits, *shape), is_gate_up=name == "gate_up") for name, shape in LAYERS.items()}
    spread = {name: copies(weight, NUM_LAYERS) for name, weight in once.items()}
    return [{name: weights[index] for name, weights in spread.items()} for index in range(NUM_LAYERS)]


def step_rows(bandwidth: float) -> list[Row]:
    """One row per format, context and batch: a whole step, and its parts alone."""
    rows: list[Row] = []
    whole = frozenset({"norm", "gemm", "attention", "head"})
    for bits in (8, 4):
        step = Step(bits)
        for context, batch in STEPS:
            step.prepare(batch, context)
            row: Row = {"bits": bits, "batch": batch, "context": context}
            chained = time_calls([partial(step.run, whole, overlap=True)])
            row["ms"], row["spread"] = chained.us / 1e3, chained.spread
            row["ms_without_overlap"] = time_calls([partial(step.run, whole, overlap=False)]).us / 1e3
            for part in sorted(whole):
                row[f"{part}_ms"] = time_calls([partial(step.run, frozenset({part}), overlap=True)]).us / 1e3
            seconds = chained.us * 1e-6
            row["tokens_per_s"] = batch / seconds
            row["share"] = step.bytes_read(batch) / bandwidth / seconds
            rows.append(row)
            print_row(row)
        del step
        torch.cuda.empty_cache()
    return rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    bandwidth = copy_bandwidth()
    device = torch.cuda.get_device_properties(0)
    print(f"copy bandwidth {bandwidth / 1e12:.3f} TB/s, {device.name}, {torch.__version__}", flush=True)
    result: dict[str, object] = {"device": device.name, "torch": torch.__version__, "copy_bytes_per_s": bandwidth}
    with torch.inference_mode():
        result["step"] = step_rows(bandwidth)
        result["gemm"] = gemm_rows(bandwidth)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
