"""Asks the engine, over random weights of a named shape, what a user must be able to rely on.

    python -m bench.soundness --shape 7b --quantization int8 nf4 --out soundness.json
    python -m bench.soundness --parts churn --quantization int8 --requests 10000 --out churn.json

* alone: 64 mixed greedy requests together, then each by itself: how many differ, and in how many of their tokens.
* continued: each of them cut in the middle and continued from its log, as after a worker's death: how many differ.
* churn: 10,000 requests of random lengths and knobs, some cancelled, some dropped: invariants, and GPU memory at every
  tenth of them: `allocated` is torch's count of what is in use, `reserved` what it holds, `used` the whole GPU's.

Agreement is asked twice: as a worker runs by default ("fast"), and with its setting `deterministic`. Alone, continued,
and `again`: the same requests once more.

Random weights give flat logits, whose near-ties turn round on the last bit of a sum: trained models differ less.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bench.device import choose_device, device_name, synchronize
from bench.engine import num_blocks
from bench.make_model import SHAPES, VOCABULARY
from bench.models import GREEDY, config_of, forget_models, free_blocks, log_to_stderr, make_engine, make_model
from bench.report import Report, Row
from worker.engine.config import KVFormat, Quantization
from worker.engine.engine import Engine, EngineSettings
from worker.engine.sequence import FinishEvent, GenerationRequest, SamplingParams, StoppingParams, TokenEvent

SLOTS = 64
MODES = {"fast": False, "deterministic": True}
NUM_MIXED, MIXED_NEW = 64, 64
Ids = dict[str, list[int]]


def mixed_requests() -> list[GenerationRequest]:
    """Greedy, prompts of 3 to 900 tokens."""
    rng = random.Random(5)
    return [
        GenerationRequest(
            f"m{number}",
            tuple(rng.randrange(3, VOCABULARY) for _ in range(rng.randint(3, 900))),
            GREEDY,
            StoppingParams(MIXED_NEW, (), (), ignore_eos=True),
        )
        for number in range(NUM_MIXED)
    ]


def run(engine: Engine, requests: Sequence[GenerationRequest]) -> Ids:
    """All of them together, to their ends."""
    ids: Ids = {request.generation_id: list(request.output_ids) for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, TokenEvent):
                ids[event.generation_id].append(event.token_id)
    engine.check()
    return ids


def differences(ours: Ids, theirs: Ids) -> dict[str, int]:
    """How many requests differ, and how many tokens follow their first difference."""
    firsts = [
        next(
            (place for place, pair in enumerate(zip(ours[name], theirs[name], strict=True)) if pair[0] != pair[1]), None
        )
        for name in theirs
    ]
    found = [first for first in firsts if first is not None]
    return {"requests": len(theirs), "differ": len(found), "tokens_after": sum(MIXED_NEW - first for first in found)}


def agreement(engine: Engine) -> dict[str, dict[str, int]]:
    """Together against alone, and continued against uninterrupted."""
    requests = mixed_requests()
    together = run(engine, requests)
    alone: Ids = {}
    for request in requests:
        alone |= run(engine, [request])
    halves = [
        replace(request, output_ids=tuple(together[request.generation_id][: MIXED_NEW // 2])) for request in requests
    ]
    return {
        "alone": differences(together, alone),
        "continued": differences(run(engine, halves), together),
        "again": differences(run(engine, requests), together),
    }


def random_request(rng: random.Random, number: int, vocabulary: int) -> GenerationRequest:
    """Any length, any knob, extreme ones too."""
    sampling = SamplingParams(
        temperature=rng.choice([0.0, 0.0, 0.7, 1.0, 1e-30, 1e30]),
        top_k=rng.choice([0, 1, 40, 10**9]),
        top_p=rng.choice([0.0, 0.9, 1.0]),
        seed=number,
        min_p=rng.choice([0.0, 0.0, 0.1]),
        typical_p=rng.choice([1.0] * 9 + [0.3]),
        repetition_penalty=rng.choice([1.0] * 9 + [1.3]),
    )
    prompt_ids = tuple(rng.randrange(3, vocabulary) for _ in range(rng.choice([1, 5, 30, 80, 200, 600])))
    return GenerationRequest(
        f"c{number}",
        prompt_ids,
        sampling,
        StoppingParams(rng.randint(1, 24), (), (2,)),
        num_choices=rng.choice([1, 1, 1, 2]),
    )


def churn(engine: Engine, num_requests: int, device: torch.device, vocabulary: int = VOCABULARY) -> Iterator[Row]:
    """Requests come as others end; 5 % are cancelled, 5 % dropped. A row at every tenth, and one after the end."""
    rng, begun = random.Random(1), time.perf_counter()
    live: set[str] = set()
    ended, added, steps, reasons = 0, 0, 0, dict[str, int]()
    num_free, told = engine.kv_blocks_free, 0
    while added < num_requests or engine.has_work:
        while added < num_requests and len(live) < 2 * SLOTS:
            request = random_request(rng, added, vocabulary)
            engine.add(request)
            live.add(request.generation_id)
            added += 1
        if live and rng.random() < 0.2:
            victim = rng.choice(sorted(live))
            if rng.random() < 0.5:
                engine.cancel(victim)
            else:
                engine.drop(victim)
                live.discard(victim)
                ended += 1
                reasons["dropped"] = reasons.get("dropped", 0) + 1
        for event in engine.step():
            if isinstance(event, FinishEvent):
                reasons[event.reason.value] = reasons.get(event.reason.value, 0) + 1
                ended += event.generation_id in live
                live.discard(event.generation_id)
        steps += 1
        if ended * 10 // num_requests > told:
            told = ended * 10 // num_requests
            engine.check()
            row = {"requests": added, "ended": ended, "steps": steps, "seconds": time.perf_counter() - begun}
            yield row | memory_mib(device) | {"preemptions": engine.num_preemptions, "choices_by_end": reasons.copy()}
    engine.check()
    assert engine.kv_blocks_free == num_free, "blocks are lost"
    row = {"requests": added, "ended": ended, "steps": steps, "seconds": time.perf_counter() - begun}
    ends = " ".join(f"{name}={count}" for name, count in sorted(reasons.items()))
    yield row | memory_mib(device) | {"preemptions": engine.num_preemptions, "ends": ends}


def memory_mib(device: torch.device) -> dict[str, float | None]:
    """Of the GPU."""
    synchronize(device)
    if device.type != "cuda":
        return dict.fromkeys(("allocated", "reserved", "used"))
    free, total = torch.cuda.mem_get_info(device)
    numbers = (torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device), total - free)
    return {name: number / 2**20 for name, number in zip(("allocated", "reserved", "used"), numbers, strict=True)}


def ask(options: argparse.Namespace, quantization: Quantization, device: torch.device, report: Report) -> None:
    """All that is asked of one format."""
    config = config_of(options.shape)
    for mode, is_deterministic in MODES.items():
        if "agreement" not in options.parts and mode != "fast":
            continue
        forget_models()
        kv_format = KVFormat(options.kv_format)
        blocks = min(num_blocks(900, SLOTS, MIXED_NEW), free_blocks(config, quantization, device, kv_format))
        fixed_rows = SLOTS if is_deterministic else 0
        model = make_model(config, quantization, blocks, device, fixed_rows=fixed_rows, kv_format=kv_format)
        settings = EngineSettings(SLOTS, max_step_tokens=2048, prefill_chunk=512, is_deterministic=is_deterministic)
        engine = make_engine(model, settings)
        name = {"quantization": quantization.value, "kv": kv_format.value, "mode": mode}
        if "churn" in options.parts and mode == "fast":
            for row in churn(engine, options.requests, device):
                report.row("churn", {**name, **row})
        if "agreement" in options.parts:
            for against, found in agreement(engine).items():
                report.row("agreement", {**name, "against": against, **found})
        del engine, model


def main() -> None:
    """Ask and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shape", choices=sorted(SHAPES), default="7b")
    add("--quantization", nargs="+", choices=["int8", "nf4"], default=["int8", "nf4"])
    add("--kv-format", choices=[each.value for each in KVFormat], default="float")
    add("--parts", nargs="+", choices=["agreement", "churn"], default=["agreement", "churn"])
    add("--requests", type=int, default=10_000, help="of the churn")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto")
    add("--out", type=Path, required=True, help="JSON; the tables go beside it, as Markdown")
    options = parser.parse_args()
    log_to_stderr()
    device = choose_device(options.device)
    report = Report(options.out, device=device_name(device), torch=torch.__version__)
    for quantization in options.quantization:
        ask(options, Quantization(quantization), device, report)


if __name__ == "__main__":
    main()
