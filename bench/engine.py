"""Times the whole engine: a Llama 2 of a named shape with random weights made on the device, no checkpoint.

    python -m bench.engine --shapes 7b --quantization int8 nf4 --out engine.json

Greedy, 128 new tokens, all sequences at once; prompts of 128 tokens, and of 1,984 up to a batch of 32. `model ms` is a
decode step of the model alone, at the context in the middle of the run; `engine ms` a step of the engine while all
sequences decode: scheduler, model, sampler, text and events. The limit is the bytes of weights, head and KV cache, each
read once, over the copy bandwidth measured in the same run; `scaled` is tokens/s times 4.28 TB/s over it. The second
table holds the share of the limit at the longest context against that at the shortest. Batches that do not fit into
the memory are left out and named. `--kv-format float int8` measures each with either KV cache, whose bytes are counted.
bench/ttft.py times first tokens.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch

from bench.device import choose_device, copy_bandwidth, device_name, spans_ms, synchronize
from bench.make_model import SHAPES
from bench.models import (
    KERNELS,
    config_of,
    free_blocks,
    kv_bytes,
    log_to_stderr,
    make_engine,
    make_model,
    request,
    weight_bytes,
)
from bench.report import Report, Row
from worker.engine.batch import SequenceSlice
from worker.engine.config import KVFormat, Quantization
from worker.engine.engine import Engine, EngineSettings
from worker.engine.hopper_model import HopperModel
from worker.engine.kernels.attention import BLOCK_SIZE
from worker.engine.model import LlamaModel
from worker.engine.sequence import TokenEvent

BATCHES = (1, 8, 32, 64, 128)
REFERENCE_BYTES_PER_S = 4.28e12
LONG_PROMPT, MAX_LONG_BATCH = 512, 32
Case = tuple[int, int]  # tokens of the prompt, sequences


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured of one model."""

    shape: str
    quantization: Quantization
    kernels: str
    new: int
    cases: Sequence[Case]
    device: torch.device
    bandwidth: float
    kv_format: KVFormat = KVFormat.FLOAT


def decode_step_times(engine: Engine, batch: int, prompt: int, new: int) -> list[float]:
    """Seconds of every step in which each of `batch` sequences decoded a token, of one run from empty to empty."""
    for number in range(batch):
        engine.add(request(number, prompt, new))
    times: list[float] = []
    num_alive = 0
    while engine.has_work:
        was_full = num_alive == batch
        begun = time.perf_counter()
        events = engine.step()
        elapsed = time.perf_counter() - begun
        num_alive = sum(isinstance(event, TokenEvent) for event in events)
        if was_full and num_alive == batch:
            times.append(elapsed)
    engine.check()
    return times


def model_times_ms(model: HopperModel | LlamaModel, batch: int, context: int, device: torch.device) -> list[float]:
    """Milliseconds of a decode step of the model alone, inputs and logits included."""
    blocks = -(-context // BLOCK_SIZE)
    slices = [
        SequenceSlice([7], context - 1, range(row * blocks, (row + 1) * blocks), wants_logits=True)
        for row in range(batch)
    ]
    return spans_ms(device, partial(model.forward, slices), 25 if device.type == "cuda" else 5)


def measure(model: HopperModel | LlamaModel, plan: Plan, case: Case) -> Row:
    """One row of the table; the engine runs once before it is timed."""
    prompt, batch = case
    context = prompt + plan.new // 2
    num_bytes = weight_bytes(model.config, plan.quantization) + kv_bytes(model.config, plan.kv_format, batch * context)
    limit_ms = num_bytes / plan.bandwidth * 1e3
    engine = make_engine(model, EngineSettings(max_sequences=batch, max_step_tokens=2048, prefill_chunk=512))
    decode_step_times(engine, batch, prompt, plan.new)
    times_ms = sorted(second * 1e3 for second in decode_step_times(engine, batch, prompt, plan.new))
    mean_ms = statistics.mean(times_ms)
    model_ms = model_times_ms(model, batch, context, plan.device)
    median_ms = statistics.median(model_ms)
    tokens_per_s = batch / mean_ms * 1e3
    return {
        "shape": plan.shape,
        "quantization": plan.quantization.value,
        "kv": plan.kv_format.value,
        "kernels": model.kernels,
        "context": context,
        "batch": batch,
        "model_ms": median_ms,
        "model_spread": (max(model_ms) - min(model_ms)) / median_ms,
        "model_share": limit_ms / median_ms,
        "engine_ms": mean_ms,
        "engine_p99_ms": times_ms[int(0.99 * len(times_ms))],
        "tokens_per_s": tokens_per_s,
        "scaled": tokens_per_s * REFERENCE_BYTES_PER_S / plan.bandwidth,
        "engine_share": limit_ms / mean_ms,
    }


def bench(plan: Plan, report: Report) -> None:
    """Make the model and measure all of it that fits."""
    config = config_of(plan.shape)
    name = f"{plan.shape} {plan.quantization.value}, {plan.kv_format.value} KV cache"
    room = free_blocks(config, plan.quantization, plan.device, plan.kv_format)
    fitting = [case for case in plan.cases if num_blocks(*case, plan.new) <= room]
    for prompt, batch in (case for case in plan.cases if case not in fitting):
        report.note(f"{name}: prompt {prompt}, batch {batch} does not fit beside the weights")
    if not fitting:
        return
    if plan.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(plan.device)
    blocks = max(num_blocks(*case, plan.new) for case in fitting)
    begun = time.perf_counter()
    model = make_model(config, plan.quantization, blocks, plan.device, plan.kernels, kv_format=plan.kv_format)
    synchronize(plan.device)
    ready_s = time.perf_counter() - begun
    rows = []
    for case in fitting:
        rows.append(measure(model, plan, case))
        report.row("decode", rows[-1])
    for row in context_rows(rows):
        report.row("contexts", row)
    peak = torch.cuda.max_memory_allocated(plan.device) / 2**30 if plan.device.type == "cuda" else None
    kv_gib = kv_bytes(config, plan.kv_format, BLOCK_SIZE) * blocks / 2**30
    report.row("memory", {"model": name, "made_in_s": ready_s, "peak_gib": peak, "kv_cache_gib": kv_gib})


def context_rows(rows: Sequence[Row]) -> list[Row]:
    """Of each batch that was measured at several contexts: its shares of the limit at the longest and the shortest."""
    found: list[Row] = []
    for batch in dict.fromkeys(row["batch"] for row in rows):
        same = sorted((row for row in rows if row["batch"] == batch), key=lambda row: float(str(row["context"])))
        if same[0]["context"] == same[-1]["context"]:
            continue
        short, long = (float(str(row["model_share"])) for row in (same[0], same[-1]))
        shown = {name: same[0][name] for name in ("shape", "quantization", "kv", "batch")}
        contexts = f"{same[-1]['context']} against {same[0]['context']}"
        found.append({**shown, "contexts": contexts, "long_share": long, "short_share": short, "kept": long / short})
    return found


def num_blocks(prompt: int, batch: int, new: int) -> int:
    """Blocks of KV cache that a case takes, with some to spare."""
    return batch * (-(-(prompt + new) // BLOCK_SIZE) + 1) + 16


def cases_of(prompts: Sequence[int], batches: Sequence[int]) -> list[Case]:
    """Every prompt with every batch, but long ones up to MAX_LONG_BATCH only: more fill the memory."""
    return [
        (prompt, batch) for prompt in prompts for batch in batches if prompt <= LONG_PROMPT or batch <= MAX_LONG_BATCH
    ]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shapes", nargs="+", choices=sorted(SHAPES), default=["7b"])
    add("--quantization", nargs="+", choices=["int8", "nf4"], default=["int8", "nf4"])
    add("--kv-format", nargs="+", choices=[each.value for each in KVFormat], default=["float"])
    add("--batches", nargs="+", type=int, default=list(BATCHES))
    add("--prompts", nargs="+", type=int, default=[128, 1984], help="tokens")
    add("--new", type=int, default=128, help="tokens of an answer")
    add("--kernels", choices=KERNELS, default="", help="by default what a worker takes on this device")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto")
    add("--out", type=Path, required=True, help="JSON; the tables go beside it, as Markdown")
    options = parser.parse_args()
    log_to_stderr()
    gc.freeze()  # as a worker does
    device = choose_device(options.device)
    bandwidth = copy_bandwidth(device)
    report = Report(options.out, device=device_name(device), torch=torch.__version__, copy_tb_per_s=bandwidth / 1e12)
    cases = cases_of(options.prompts, options.batches)
    for shape, name, kv_name in product(options.shapes, options.quantization, options.kv_format):
        settings = (shape, Quantization(name), options.kernels, options.new, cases, device, bandwidth)
        try:
            bench(Plan(*settings, KVFormat(kv_name)), report)
        except torch.OutOfMemoryError as error:  # the next model may fit
            report.note(f"{shape} {name} {kv_name}: {error}")


if __name__ == "__main__":
    main()
