"""Closed-loop load on a running gateway: N streams, each starts its next generation when the last one ends.

    python -m bench.load --address 127.0.0.1:50051 --streams 8 --rounds 2 --prompt 128 --new 128

Checks every stream (positions without gap or repeat, `completed` last) and prints one JSON line.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from dataclasses import dataclass, field

import grpc

from llamaherd.v1 import common_pb2, generation_pb2, generation_pb2_grpc


@dataclass(slots=True)
class Seen:
    """What the streams saw, in seconds."""

    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    wrong: int = 0


async def one(stub: generation_pb2_grpc.GenerationServiceStub, ids: list[int], new: int, seen: Seen) -> None:
    """One generation, checked."""
    spec = common_pb2.GenerationSpec(
        token_ids=common_pb2.TokenIds(ids=ids),
        sampling=common_pb2.Sampling(temperature=0),
        stopping=common_pb2.Stopping(max_new_tokens=new),
    )
    begun = last = time.perf_counter()
    position, completed = 0, None
    async for response in stub.Generate(generation_pb2.GenerateRequest(spec=spec), timeout=600):
        now = time.perf_counter()
        if response.tokens:
            (seen.gaps if position else seen.first).append(now - (last if position else begun))
            last = now
        for token in response.tokens:
            seen.wrong += token.position != position
            position += 1
        if response.HasField("completed"):
            completed = response.completed
    seen.tokens += position
    seen.wrong += completed is None or completed.usage.output_tokens != position


async def run(address: str, streams: int, rounds: int, prompt: int, new: int, vocabulary: int) -> dict[str, object]:
    """All streams; the figures."""
    rng = random.Random(0)
    seen = Seen()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)

        async def stream(prompts: list[list[int]]) -> None:
            for ids in prompts:
                await one(stub, ids, new, seen)

        warm = Seen()
        await one(stub, [1] + [rng.randrange(3, vocabulary) for _ in range(prompt - 1)], new, warm)
        work = [
            [[1] + [rng.randrange(3, vocabulary) for _ in range(prompt - 1)] for _ in range(rounds)]
            for _ in range(streams)
        ]
        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for prompts in work:
                group.create_task(stream(prompts))
        wall = time.perf_counter() - begun

    def spread(values: list[float]) -> dict[str, float]:
        cut = statistics.quantiles(values, n=100) if len(values) > 1 else values * 99
        return {"p50_ms": round(cut[49] * 1e3, 2), "p99_ms": round(cut[98] * 1e3, 2)}

    return {
        "streams": streams,
        "generations": streams * rounds,
        "prompt": prompt,
        "new": new,
        "tokens": seen.tokens,
        "wrong": seen.wrong,
        "wall_s": round(wall, 2),
        "tokens_per_s": round(seen.tokens / wall, 1),
        "first_token": spread(seen.first),
        "between_messages": spread(seen.gaps or [0.0]),
    }


def main() -> None:
    """Parse the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="127.0.0.1:50051")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    a = parser.parse_args()
    print(json.dumps(asyncio.run(run(a.address, a.streams, a.rounds, a.prompt, a.new, a.vocabulary))))


if __name__ == "__main__":
    main()
