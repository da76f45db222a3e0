"""The engine of a worker without the service around it: the same folder, settings and requests as bench/serving.py.

    python -m bench.alone --folder /tmp/llama-7b-int8 --streams 1 8 64 128

Closed loop as in bench/load.py: N requests at once, and for each that ends the next. What the service keeps of these
tokens/s is what it costs. Prints one JSON line for each number of streams.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import time
from pathlib import Path

from bench.load import Seen, figures, random_prompt, rounds_of
from bench.models import GREEDY
from telemetry.logs import start_logging
from worker.engine.engine import Engine
from worker.engine.sequence import FinishEvent, GenerationRequest, StoppingParams, TokenEvent
from worker.load import load
from worker.progress import Progress
from worker.settings import WorkerSettings


def run(engine: Engine, streams: int, rounds: int, prompt: int, new: int, vocabulary: int) -> Seen:
    """All generations, each with its tokens counted."""
    rng = random.Random(streams)
    prompts = [tuple(random_prompt(rng, prompt, vocabulary)) for _ in range(streams * rounds)]
    stopping = StoppingParams(new, stop_strings=(), eos_token_ids=(), ignore_eos=True)
    seen, last, begun = Seen(), dict[str, float](), set[str]()
    names = iter([f"g{number}" for number in range(len(prompts))])
    waiting = [GenerationRequest(name, ids, GREEDY, stopping) for name, ids in zip(names, prompts, strict=True)][::-1]

    def start() -> None:
        asked = waiting.pop()
        last[asked.generation_id] = time.monotonic()
        engine.add(asked)

    seen.begun_s = time.monotonic()
    for _ in range(streams):
        start()
    while engine.has_work:
        events = engine.step()
        now = time.monotonic()
        for event in events:
            if isinstance(event, TokenEvent):
                (seen.gaps if event.generation_id in begun else seen.first).append(now - last[event.generation_id])
                begun.add(event.generation_id)
                last[event.generation_id] = now
                seen.tokens += 1
            elif isinstance(event, FinishEvent):
                seen.generations += 1
                if waiting:
                    start()
    seen.ended_s = time.monotonic()
    seen.wrong = abs(streams * rounds * new - seen.tokens)
    engine.check()
    return seen


def load_engine(folder: Path, slots: int, device: str, kv_cache_bytes: int) -> Engine:
    """As a worker with these settings loads it, and warm."""
    settings = WorkerSettings(
        model_path=folder,
        max_sequences=slots,
        device=device,
        kv_cache_bytes=kv_cache_bytes,
        threads=max(1, (os.cpu_count() or 1) // 2),  # as `herd up` gives to one worker
    )
    progress, fd = Progress.create()
    engine = load(settings, progress).engine
    os.close(fd)
    assert isinstance(engine, Engine)
    run(engine, min(2, slots), 1, 8, 4, 100)
    return engine


def main() -> None:
    """Load, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="a model folder")
    add("--streams", nargs="+", type=int, default=[1, 8, 64, 128])
    add("--rounds", type=int, default=0, help="generations a stream; by default the fewer, the more streams there are")
    add("--prompt", type=int, default=128, help="tokens")
    add("--new", type=int, default=128, help="tokens of an answer")
    add("--vocabulary", type=int, default=32_000)
    add("--device", default="auto")
    add("--kv-cache-bytes", type=int, default=0, help="as HERD_WORKER_KV_CACHE_BYTES")
    options = parser.parse_args()
    start_logging("bench-alone", "info")  # which kernels run, among other things
    engine = load_engine(options.folder, max(options.streams), options.device, options.kv_cache_bytes)
    gc.freeze()
    for streams in options.streams:
        rounds = options.rounds or rounds_of(streams)
        seen = run(engine, streams, rounds, options.prompt, options.new, options.vocabulary)
        print(json.dumps(figures(streams, [seen])), flush=True)


if __name__ == "__main__":
    main()
