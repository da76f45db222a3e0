"""Asks the engine on a Hopper GPU, over random weights of a named shape, what a user must be able to rely on.

    python -m bench.soundness --shape 7b --quantization int8 nf4 --out soundness.json

* alone: 64 mixed greedy requests together, then each by itself: how many differ, and in how many of their tokens.
* continued: each of them cut in the middle and continued from its log, as after a worker's death: how many differ.
* churn: 10,000 requests of random lengths and knobs, some cancelled, some dropped: invariants, and GPU memory.

Agreement is asked twice: as a worker runs by default ("fast"), and with its setting `deterministic`.

Random weights give flat logits, whose near-ties turn round on the last bit of a sum: trained models differ less.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bench.engine import GREEDY, RandomSource, config_of
from bench.make_model import SHAPES, VOCABULARY
from worker.engine.config import Quantization
from worker.engine.detokenizer import TokenPieces
from worker.engine.engine import Engine, EngineSettings
from worker.engine.hopper_model import HopperModel
from worker.engine.loader import load_hopper_model
from worker.engine.sequence import FinishEvent, GenerationRequest, SamplingParams, StoppingParams, TokenEvent

NUM_MIXED, MIXED_NEW = 64, 64
Ids = dict[str, list[int]]


def engine_over(model: HopperModel, settings: EngineSettings) -> Engine:
    """As a worker makes it."""
    pieces = TokenPieces(tuple(b" w%d" % number for number in range(VOCABULARY)), frozenset())
    return Engine(model, pieces, settings)


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


def agreement(model: HopperModel, settings: EngineSettings) -> dict[str, dict[str, int]]:
    """Together against alone, and continued against uninterrupted."""
    requests = mixed_requests()
    engine = engine_over(model, settings)
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


def random_request(rng: random.Random, number: int) -> GenerationRequest:
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
    prompt_ids = tuple(rng.randrange(3, VOCABULARY) for _ in range(rng.choice([1, 5, 30, 80, 200, 600])))
    return GenerationRequest(
        f"c{number}",
        prompt_ids,
        sampling,
        StoppingParams(rng.randint(1, 24), (), (2,)),
        num_choices=rng.choice([1, 1, 1, 2]),
    )


def churn(model: HopperModel, settings: EngineSettings, num_requests: int) -> dict[str, object]:
    """Requests come as others end; 5 % are cancelled, 5 % dropped."""
    rng = random.Random(1)
    engine = engine_over(model, settings)
    live: set[str] = set()
    ended, added, steps, reasons = 0, 0, 0, dict[str, int]()
    torch.cuda.synchronize()
    memory: list[int] = []
    begun = time.perf_counter()
    while added < num_requests or engine.has_work:
        while added < num_requests and len(live) < 2 * settings.max_sequences:
            request = random_request(rng, added)
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
        for event in engine.step():
            if isinstance(event, FinishEvent):
                reasons[event.reason.value] = reasons.get(event.reason.value, 0) + 1
                ended += event.generation_id in live
                live.discard(event.generation_id)
        steps += 1
        if steps % 500 == 0:
            engine.check()
            memory.append(torch.cuda.memory_allocated())
    engine.check()
    assert engine.kv_blocks_free == model.num_blocks, "blocks are lost"
    return {
        "requests": added,
        "ended": ended,
        "choices_by_end": reasons,
        "steps": steps,
        "seconds": time.perf_counter() - begun,
        "preemptions": engine.num_preemptions,
        "allocated_bytes": memory,
    }


def main() -> None:
    """Ask and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="7b")
    parser.add_argument("--quantization", nargs="+", choices=["int8", "nf4"], default=["int8", "nf4"])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    result: dict[str, object] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    settings = EngineSettings(max_sequences=64, max_step_tokens=2048, prefill_chunk=512)
    for name in arguments.quantization:
        torch.cuda.empty_cache()
        config = config_of(arguments.shape)
        found: dict[str, object] = {}
        for mode in (False, True):
            source = RandomSource(config, Quantization(name))
            model = load_hopper_model(
                source, config, kv_blocks=1100, kv_bytes=None, progress=lambda _: None, fixed_rows=64 if mode else 0
            )
            label = "deterministic" if mode else "fast"
            found[label] = agreement(model, replace(settings, is_deterministic=mode))
            print(name, label, json.dumps(found[label]), flush=True)
            if not mode:
                found["churn"] = churn(model, settings, arguments.requests)
                print(name, "churn", json.dumps(found["churn"]), flush=True)
            del model
            torch.cuda.empty_cache()
        result[name] = found
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
