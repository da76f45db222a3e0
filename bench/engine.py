"""Times the whole engine on a Hopper GPU: a Llama 2 of a named shape with random weights made there, no checkpoint.

    python -m bench.engine --shape 7b --quantization int8 nf4 --out engine.json

Greedy, 128 new tokens, all sequences at once; prompts of 128 tokens, and of 1,984 up to a batch of 32. `model ms` is a
decode step of the model alone, at the context in the middle of the run; `engine ms` a step of the engine while all
sequences decode: scheduler, model, sampler, text and events. The limit is the bytes of weights, head and KV cache, each
read once, over the copy bandwidth measured in the same run. TTFT is from `add` to the first token of a prompt of 512
tokens, alone. Prints a table, writes all numbers to --out.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from bench.kernels import CUDA, copy_bandwidth, random_weight
from bench.make_model import SHAPES, VOCABULARY
from worker.engine.batch import SequenceSlice
from worker.engine.config import LlamaConfig, Quantization
from worker.engine.detokenizer import TokenPieces
from worker.engine.engine import Engine, EngineSettings
from worker.engine.hopper_model import HopperModel
from worker.engine.kernels.attention import BLOCK_SIZE
from worker.engine.loader import load_hopper_model
from worker.engine.sequence import GenerationRequest, SamplingParams, StoppingParams, TokenEvent
from worker.engine.weights import LinearWeight

BATCHES = (1, 8, 32, 64, 128)
NEW, TTFT_PROMPT = 128, 512
GREEDY = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, seed=0)


@dataclass(frozen=True, slots=True)
class Row:
    """One batch size. `spread` is (largest - smallest) / median of the model's replays; shares are of the limit."""

    shape: str
    quantization: str
    prompt: int
    batch: int
    model_ms: float
    model_spread: float
    model_share: float
    engine_ms: float
    engine_p99_ms: float
    tokens_per_s: float
    engine_share: float


class RandomSource:
    """Weights that nobody trained: random bytes in the storage format, made on the GPU."""

    def __init__(self, config: LlamaConfig, quantization: Quantization) -> None:
        self._config = config
        self._bits = 8 if quantization is Quantization.INT8 else 4
        torch.manual_seed(0)

    def vector(self, name: str) -> Tensor:
        """A norm that only scales."""
        return torch.ones(self._config.hidden_size, device=CUDA)

    def matrix(self, name: str) -> Tensor:
        """The embedding or the head."""
        shape = (self._config.vocab_size, self._config.hidden_size)
        return torch.randn(shape, device=CUDA, dtype=torch.float16).mul_(self._config.hidden_size**-0.5)

    def linear(self, module: str, shape: tuple[int, int]) -> LinearWeight:
        """A decoder's linear layer."""
        return random_weight(self._bits, *shape)


def config_of(shape: str) -> LlamaConfig:
    """The configuration of a named shape."""
    size = SHAPES[shape]
    return LlamaConfig(
        hidden_size=size["hidden_size"],
        intermediate_size=size["intermediate_size"],
        num_layers=size["layers"],
        num_heads=size["heads"],
        num_kv_heads=size["kv_heads"],
        head_dim=size["hidden_size"] // size["heads"],
        vocab_size=VOCABULARY,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        dtype="float16",
        saved_quantization=Quantization.NONE,
    )


def make_engine(model: HopperModel, batch: int) -> Engine:
    """As a worker makes it, with room for `batch` sequences."""
    pieces = TokenPieces(tuple(b" w%d" % number for number in range(VOCABULARY)), frozenset())
    return Engine(model, pieces, EngineSettings(max_sequences=batch, max_step_tokens=2048, prefill_chunk=512))


def request(number: int, prompt: int, new: int) -> GenerationRequest:
    """A greedy request that ends by its length."""
    prompt_ids = torch.randint(3, VOCABULARY, (prompt,), generator=torch.Generator().manual_seed(number)).tolist()
    return GenerationRequest(
        f"g{number}", tuple(prompt_ids), GREEDY, StoppingParams(new, stop_strings=(), eos_token_ids=(), ignore_eos=True)
    )


def decode_step_times(engine: Engine, batch: int, prompt: int) -> list[float]:
    """Seconds of every step in which each of `batch` sequences decoded a token, of one run from empty to empty."""
    for number in range(batch):
        engine.add(request(number, prompt, NEW))
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


def model_times_ms(model: HopperModel, batch: int, context: int, repeats: int = 25) -> list[float]:
    """Milliseconds of a decode step of the model alone, inputs and logits included, by events around each."""
    blocks = -(-context // BLOCK_SIZE)
    slices = [
        SequenceSlice([7], context - 1, range(row * blocks, (row + 1) * blocks), wants_logits=True)
        for row in range(batch)
    ]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]  # type: ignore[no-untyped-call]
    for mark in marks:
        model.forward(slices)
        mark.record()
    torch.cuda.synchronize()
    return [first.elapsed_time(second) for first, second in pairwise(marks)][repeats // 5 :]


def measure(
    model: HopperModel, shape: str, quantization: Quantization, prompt: int, batch: int, bandwidth: float
) -> Row:
    """One row of the table; the engine runs once before it is timed."""
    config = model.config
    context = prompt + NEW // 2
    kv_bytes = batch * context * config.kv_bytes_per_block(1, 2)
    limit_ms = (model.weights.num_bytes_read + kv_bytes) / bandwidth * 1e3
    engine = make_engine(model, batch)
    decode_step_times(engine, batch, prompt)
    times_ms = sorted(second * 1e3 for second in decode_step_times(engine, batch, prompt))
    mean_ms = statistics.mean(times_ms)
    model_ms = model_times_ms(model, batch, context)
    median_ms = statistics.median(model_ms)
    return Row(
        shape=shape,
        quantization=quantization.value,
        prompt=prompt,
        batch=batch,
        model_ms=median_ms,
        model_spread=(max(model_ms) - min(model_ms)) / median_ms,
        model_share=limit_ms / median_ms,
        engine_ms=mean_ms,
        engine_p99_ms=times_ms[int(0.99 * len(times_ms))],
        tokens_per_s=batch / mean_ms * 1e3,
        engine_share=limit_ms / mean_ms,
    )


def ttft_ms(model: HopperModel, repeats: int = 7) -> list[float]:
    """Milliseconds from `add` to the first token, the first two left out."""
    times: list[float] = []
    engine = make_engine(model, 1)
    for number in range(repeats + 2):
        begun = time.perf_counter()
        engine.add(request(number, TTFT_PROMPT, 1))
        while not any(isinstance(event, TokenEvent) for event in engine.step()):
            pass
        times.append((time.perf_counter() - begun) * 1e3)
    return times[2:]


def bench(
    shape: str, quantization: Quantization, prompts: Sequence[int], batches: Sequence[int], bandwidth: float
) -> dict[str, object]:
    """Make the model and measure all of it."""
    torch.cuda.reset_peak_memory_stats()
    config = config_of(shape)
    blocks = max(_num_blocks(prompt, batch) for prompt in prompts for batch in _batches(prompt, batches))
    begun = time.perf_counter()
    model = load_hopper_model(
        RandomSource(config, quantization), config, kv_blocks=blocks, kv_bytes=None, progress=lambda _: None
    )
    torch.cuda.synchronize()
    ready_s = time.perf_counter() - begun
    first_tokens = ttft_ms(model)
    print(
        f"{shape} {quantization.value}: ready in {ready_s:.1f} s, TTFT {statistics.median(first_tokens):.1f} ms",
        flush=True,
    )
    rows = [
        measure(model, shape, quantization, prompt, batch, bandwidth)
        for prompt in prompts
        for batch in _batches(prompt, batches)
    ]
    peak_gib = torch.cuda.max_memory_allocated() / 2**30
    kv_gib = config.kv_bytes_per_block(BLOCK_SIZE, 2) * blocks / 2**30
    print(
        "| weights | prompt | batch | model ms | spread | share | engine ms | p99 | decode tokens/s | scaled | share |"
    )
    for row in rows:
        print(
            f"| {shape} {row.quantization} | {row.prompt} | {row.batch} | {row.model_ms:.2f} | {row.model_spread:.1%} |"
            f" {row.model_share:.0%} | {row.engine_ms:.2f} | {row.engine_p99_ms:.2f} | {row.tokens_per_s:,.0f} |"
            f" {row.tokens_per_s * 4.28e12 / bandwidth:,.0f} | {row.engine_share:.0%} |",
            flush=True,
        )
    print(f"peak {peak_gib:.1f} GiB, of it KV cache {kv_gib:.1f}", flush=True)
    return {
        "rows": [asdict(row) for row in rows],
        "ttft_ms": first_tokens,
        "ready_s": ready_s,
        "peak_gib": peak_gib,
        "kv_gib": kv_gib,
    }


def _num_blocks(prompt: int, batch: int) -> int:
    return batch * (-(-(prompt + NEW) // BLOCK_SIZE) + 1) + 16


def _batches(prompt: int, batches: Sequence[int]) -> list[int]:
    """Long contexts are measured up to a batch of 32: more fill the memory."""
    return [batch for batch in batches if prompt <= 512 or batch <= 32]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="7b")
    parser.add_argument("--quantization", nargs="+", choices=["int8", "nf4"], default=["int8", "nf4"])
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--prompts", nargs="+", type=int, default=[128, 1984])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    gc.freeze()  # as a worker does
    bandwidth = copy_bandwidth()
    device = torch.cuda.get_device_properties(0)
    print(f"copy bandwidth {bandwidth / 1e12:.3f} TB/s, {device.name}, torch {torch.__version__}", flush=True)
    result: dict[str, object] = {"device": device.name, "torch": torch.__version__, "copy_bytes_per_s": bandwidth}
    for name in arguments.quantization:
        torch.cuda.empty_cache()
        result[name] = bench(arguments.shape, Quantization(name), arguments.prompts, arguments.batches, bandwidth)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
