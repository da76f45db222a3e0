"""Times the first token of a prompt: in a fresh process, under load, after rest; with clocks, and where the time goes.

    python -m bench.ttft --quantization int8 nf4 nf4 --out ttft.json
    python -m bench.ttft --quantization int8 --prefill-activations int8 --out rounded.json

From `add` to the token on the host, one prompt at a time, over random weights of a named shape made on the device. Each
format named gets a process of its own, one after the other. In each: `fresh`, right after the model was made; `loaded`,
right after 64 sequences decoded for --load seconds; `rested`, after --rest seconds of nothing; `now and then`, with a
tenth of that between. `host ms` is the time until the step was queued; `device ms`, by events, the time from the call
to the end of what was queued; `watched ms` the median of as many more while nvidia-smi was asked for the clocks told
beside it, `reasons` its bits for clocks below the highest. `built` counts kernels that were compiled, not found on
disk. The second table is one more prompt under the profiler, by kernel.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from bench.device import Clocks, choose_device, device_name, synchronize
from bench.make_model import SHAPES
from bench.models import config_of, log_to_stderr, make_engine, make_model, request
from bench.report import Report, rows_of
from worker.engine.config import ActivationFormat, Quantization
from worker.engine.engine import Engine, EngineSettings
from worker.engine.kernels.attention import BLOCK_SIZE
from worker.engine.kernels.build import cache_folder
from worker.engine.sequence import TokenEvent

LOAD_SEQUENCES, LOAD_NEW = 64, 200
PRODUCTS = ("qkv", "attention out", "gate up", "down")
PHASES = {  # words in kernels' names, the first that is found counts
    "quantized_gemm": "products",
    "round_rows": "rounding activations",
    "flash": "attention",
    "rotate": "rotary, KV write",
    "norm": "norms",
    "index": "gathering KV, embedding",
    "gather": "gathering KV, embedding",
    "choose": "choice",
    "gemm": "head",
    "nvjet": "head",  # cuBLAS' own names on Hopper
    "memcpy": "copies",
}


@dataclass(frozen=True, slots=True)
class First:
    """One first token, milliseconds; `device` is None where events cannot tell."""

    ttft: float
    host: float
    device: float | None


def first_token(engine: Engine, device: torch.device, number: int, prompt: int) -> First:
    """Ask for one token and wait for it."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []  # type: ignore[no-untyped-call]
    asked = request(number, prompt, 1)
    begun = time.perf_counter()
    for mark in marks[:1]:
        mark.record()
    engine.add(asked)
    events = engine.step()
    queued = time.perf_counter()
    for mark in marks[1:]:
        mark.record()
    while not any(isinstance(event, TokenEvent) for event in events):
        events = engine.step()
    ended = time.perf_counter()
    while engine.has_work:
        engine.step()
    synchronize(device)
    on_device = marks[0].elapsed_time(marks[1]) if marks else None
    return First((ended - begun) * 1e3, (queued - begun) * 1e3, on_device)


def first_tokens(engine: Engine, device: torch.device, prompt: int, repeats: int, pause_s: float) -> list[First]:
    """One after the other, each after a pause."""
    times = []
    for number in range(repeats):
        time.sleep(pause_s)
        times.append(first_token(engine, device, number, prompt))
    return times


def load(engine: Engine, seconds: float) -> None:
    """Keep LOAD_SEQUENCES decoding for so long, then drop them."""
    end_s, numbers = time.monotonic() + seconds, count(10**6)
    asked: list[str] = []
    while time.monotonic() < end_s:
        while engine.num_running + engine.num_waiting < LOAD_SEQUENCES:
            begun = request(next(numbers), 100, LOAD_NEW)
            engine.add(begun)
            asked.append(begun.generation_id)
        engine.step()
    for generation_id in asked:
        engine.drop(generation_id)
    while engine.has_work:
        engine.step()


def moments(options: argparse.Namespace, quantization: Quantization) -> Iterator[dict[str, object]]:
    """The rows of one process, each as {"table", "row"}."""
    device = choose_device(options.device)
    held, begun = set(_cubins()), time.perf_counter()
    blocks = LOAD_SEQUENCES * (-(-(100 + LOAD_NEW) // BLOCK_SIZE) + 1) + options.prompt // BLOCK_SIZE + 2
    activations = ActivationFormat(options.prefill_activations)
    model = make_model(config_of(options.shape), quantization, blocks, device, prefill_activations=activations)
    synchronize(device)
    ready_s = time.perf_counter() - begun
    settings = EngineSettings(max_sequences=LOAD_SEQUENCES, max_step_tokens=2048, prefill_chunk=512)
    engine = make_engine(model, settings)
    label = {"quantization": quantization.value, "activations": activations.value}
    between: dict[str, Callable[[], None]] = {
        "fresh": lambda: None,
        "loaded": lambda: load(engine, options.load),
        "rested": lambda: time.sleep(options.rest),
        "now and then": lambda: None,
    }
    for moment, prepare in between.items():
        prepare()
        pause_s = options.rest / 10 if moment == "now and then" else 0.0
        repeats = max(2, options.repeats // (4 if pause_s else 1))
        times = first_tokens(engine, device, options.prompt, repeats, pause_s)
        with Clocks(device) as clocks:  # apart, since whoever asks for clocks may hold the driver up
            watched = first_tokens(engine, device, options.prompt, repeats, pause_s)
        row = {**label, "moment": moment, **figures(times)}
        row |= {"watched_ms": statistics.median(each.ttft for each in watched), **clocks.summary()}
        built = len(set(_cubins()) - held)
        yield {"table": "first token", "row": row | {"ready_s": ready_s, "built": built}}
    for phase, milliseconds in profiled(engine, device, options.prompt).items():
        yield {"table": "by kernel", "row": {**label, "what": phase, "ms": milliseconds}}


def figures(times: list[First]) -> dict[str, object]:
    """Of the repeats; the first alone, too: what is loaded or woken then."""
    ttfts = [each.ttft for each in times]
    on_device = [each.device for each in times if each.device is not None]
    return {
        "repeats": len(times),
        "first_ms": ttfts[0],
        "median_ms": statistics.median(ttfts),
        "least_ms": min(ttfts),
        "most_ms": max(ttfts[1:]),
        "host_ms": statistics.median(each.host for each in times),
        "device_ms": statistics.median(on_device) if on_device else None,
        "all_ms": [round(each, 3) for each in ttfts],
    }


def profiled(engine: Engine, device: torch.device, prompt: int) -> dict[str, float]:
    """Milliseconds on the device by what ran, of the second of two prompts; empty, with a word, where it cannot be."""
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    try:
        first_token(engine, device, 0, prompt)
        with profile(activities=[activity]) as found:
            first_token(engine, device, 1, prompt)
        kernels = [
            (event.name, event.time_range.start, event.time_range.elapsed_us())
            for event in found.events() or ()
            if event.device_type.name == device.type.upper()
        ]
    except RuntimeError as error:  # of a profiler that this machine does not allow
        print(f"no profile: {error}", file=sys.stderr)
        return {}
    return by_phase(sorted(kernels, key=lambda kernel: kernel[1]))


def by_phase(kernels: Iterable[tuple[str, float, float]]) -> dict[str, float]:
    """Milliseconds of each phase, from (name, start, microseconds) of kernels in their order; and what lay between.

    The quantized products come layer by layer in the order of PRODUCTS. Kernels may overlap: a sum may pass the span.
    """
    found: dict[str, float] = {}
    num_products, begun, ended, waiting = 0, None, 0.0, 0.0
    for name, start, microseconds in kernels:
        words = name.lower()
        phase = next((phase for word, phase in PHASES.items() if word in words), "other")
        if phase == "products":
            phase = f"product {PRODUCTS[num_products % len(PRODUCTS)]}"
            num_products += 1
        found[phase] = found.get(phase, 0.0) + microseconds / 1e3
        begun = start if begun is None else begun
        waiting += max(0.0, start - ended) / 1e3 if ended else 0.0
        ended = max(ended, start + microseconds)
    if begun is not None:
        found |= {"nothing ran": waiting, "first kernel to last": (ended - begun) / 1e3}
    return found


def _cubins() -> list[Path]:
    return list(cache_folder().glob("*.cubin"))


def main() -> None:
    """A process for each format, rows as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shape", choices=sorted(SHAPES), default="7b")
    add("--quantization", nargs="+", choices=["int8", "nf4"], default=["int8", "nf4"], help="a process for each word")
    add("--prefill-activations", choices=[each.value for each in ActivationFormat], default="float")
    add("--prompt", type=int, default=512, help="tokens")
    add("--repeats", type=int, default=40)
    add("--load", type=float, default=15.0, help="seconds")
    add("--rest", type=float, default=5.0, help="seconds")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto")
    add(
        "--out", type=Path, help="JSON; the tables go beside it, as Markdown. Without it: rows of one process, as lines"
    )
    options = parser.parse_args()
    log_to_stderr()
    if options.out is None:
        gc.freeze()  # as a worker does
        for row in moments(options, Quantization(options.quantization[0])):
            print(json.dumps(row), flush=True)
        return
    report = Report(options.out, device=device_name(choose_device(options.device)), torch=torch.__version__)
    for number, quantization in enumerate(options.quantization, 1):
        command = [sys.executable, "-m", "bench.ttft", "--quantization", quantization]
        for name in ("shape", "prefill-activations", "prompt", "repeats", "load", "rest", "device"):
            command += [f"--{name}", str(getattr(options, name.replace("-", "_")))]
        try:
            for told in rows_of(command):
                report.row(told["table"], {"process": number, **told["row"]})
        except RuntimeError as error:  # the next one may do better
            report.note(str(error))


if __name__ == "__main__":
    main()
