"""Closed-loop load on a running gateway: N streams, each starts its next generation when the last one ends.

    python -m bench.load --address 127.0.0.1:50051 --streams 64 --rounds 4 --prompt 128 --new 128

Checks every stream (positions without gap or repeat, `completed` last) and prints one JSON line. All streams begin at
once; the rate is all tokens over the time from the first request to the last end. Several processes read, so that it
is not the reader that is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import grpc
import uvloop

from contract.lifetime import bound
from llamaherd.v1 import common_pb2, generation_pb2, generation_pb2_grpc

STREAMS_PER_CHANNEL = 4  # so that several gateways have about as many
TIMEOUT_S = 600.0


@dataclass(slots=True)
class Seen:
    """What streams saw, in seconds; `begun_s` and `ended_s` by time.monotonic(), which processes share."""

    begun_s: float = 0.0
    ended_s: float = 0.0
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    queued: list[float] = field(default_factory=list)  # by the service: until a worker took it
    logged: list[float] = field(default_factory=list)  # by the service: until its first token was in the log
    tokens: int = 0
    generations: int = 0
    wrong: int = 0


def random_prompt(rng: random.Random, length: int, vocabulary: int) -> list[int]:
    """BOS and what nobody would write."""
    return [1, *(rng.randrange(3, vocabulary) for _ in range(length - 1))]


def rounds_of(streams: int) -> int:
    """Generations a stream: enough that the first ones, which begin together, and the last ones weigh little."""
    return max(8, min(20, 64 // streams))


async def one(stub: generation_pb2_grpc.GenerationServiceStub, ids: Sequence[int], new: int, seen: Seen) -> None:
    """One generation, checked."""
    spec = common_pb2.GenerationSpec(
        token_ids=common_pb2.TokenIds(ids=ids),
        sampling=common_pb2.Sampling(temperature=0),
        stopping=common_pb2.Stopping(max_new_tokens=new, ignore_eos=True),
    )
    last = time.monotonic()
    position, told = 0, -1
    async for response in stub.Generate(generation_pb2.GenerateRequest(spec=spec), timeout=TIMEOUT_S):
        now = time.monotonic()
        if response.tokens:
            (seen.gaps if position else seen.first).append(now - last)
            last = now
        for token in response.tokens:
            seen.wrong += token.position != position
            position += 1
        if response.HasField("completed"):
            told = response.completed.usage.output_tokens
            seen.queued.append(response.completed.timings.queue_ms / 1e3)
            seen.logged.append(response.completed.timings.first_token_ms / 1e3)
    seen.tokens += position
    seen.generations += 1
    seen.wrong += not position == told == new


async def read(options: argparse.Namespace) -> Seen:
    """All streams of this process; they begin when a line comes in."""
    rng = random.Random(options.seed)
    prompts = [
        [random_prompt(rng, options.prompt, options.vocabulary) for _ in range(options.rounds)]
        for _ in range(options.streams)
    ]
    seen = Seen()
    channels = [
        grpc.aio.insecure_channel(options.address, [("grpc.use_local_subchannel_pool", 1)])
        for _ in range(-(-options.streams // STREAMS_PER_CHANNEL))
    ]
    stubs = [generation_pb2_grpc.GenerationServiceStub(channel) for channel in channels]

    async def stream(number: int) -> None:
        for ids in prompts[number]:
            await one(stubs[number % len(stubs)], ids, options.new, seen)

    for channel in channels:
        await channel.channel_ready()
    await one(stubs[0], prompts[0][0], 2, Seen())
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    seen.begun_s = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(options.streams):
            group.create_task(stream(number))
    seen.ended_s = time.monotonic()
    for channel in channels:
        await channel.close()
    return seen


def measure(
    address: str, streams: int, rounds: int, prompt: int, new: int, vocabulary: int, processes: int
) -> dict[str, object]:
    """The figures of one run, by as many processes as there are streams for, `processes` at most."""
    processes = min(processes, streams)
    readers = []
    for number in range(processes):
        mine = streams // processes + (number < streams % processes)
        arguments = {"address": address, "streams": mine, "rounds": rounds, "prompt": prompt, "new": new}
        arguments |= {"vocabulary": vocabulary, "seed": number}
        command = [sys.executable, "-m", "bench.load", "--reader"]
        command += [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
        readers.append(subprocess.Popen(bound(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for reader in readers:
        assert reader.stdout
        if reader.stdout.readline() != "ready\n":
            raise RuntimeError("a reader ended before it was ready; its own words are above")
    for reader in readers:
        assert reader.stdin
        reader.stdin.write("\n")
        reader.stdin.flush()
    return figures(streams, [Seen(**json.loads(reader.communicate()[0])) for reader in readers])


def figures(streams: int, seen: Sequence[Seen]) -> dict[str, object]:
    """Of all readers together."""
    first = sorted(value for each in seen for value in each.first)
    gaps = sorted(value for each in seen for value in each.gaps)
    tokens = sum(each.tokens for each in seen)
    seconds = max(each.ended_s for each in seen) - min(each.begun_s for each in seen)
    parts = {name: sorted(value for each in seen for value in getattr(each, name)) for name in ("queued", "logged")}
    return {
        "streams": streams,
        "generations": sum(each.generations for each in seen),
        "tokens": tokens,
        "wrong": sum(each.wrong for each in seen),
        "seconds": seconds,
        "tokens_per_s": tokens / seconds,
        "first_p50_ms": percentile_ms(first, 50),
        "first_p99_ms": percentile_ms(first, 99),
        "gap_p50_ms": percentile_ms(gaps, 50),
        "gap_p99_ms": percentile_ms(gaps, 99),
        **{f"{name}_p50_ms": percentile_ms(ordered, 50) for name, ordered in parts.items() if ordered},
    }


def percentile_ms(ordered: Sequence[float], percent: int) -> float | None:
    """Of seconds in rising order; None of none."""
    if len(ordered) < 2:
        return ordered[0] * 1e3 if ordered else None
    return statistics.quantiles(ordered, n=100, method="inclusive")[percent - 1] * 1e3


def main() -> None:
    """Parse the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--address", default="127.0.0.1:50051")
    add("--streams", type=int, default=8)
    add("--rounds", type=int, default=0, help="generations a stream; by default the fewer, the more streams there are")
    add("--prompt", type=int, default=128, help="tokens")
    add("--new", type=int, default=128, help="tokens of an answer")
    add("--vocabulary", type=int, default=32_000)
    add("--processes", type=int, default=4, help="of readers")
    add("--reader", action="store_true", help="be one of them: say `ready`, begin with the next line of input")
    add("--seed", type=int, default=0)
    options = parser.parse_args()
    options.rounds = options.rounds or rounds_of(options.streams)
    if options.reader:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            print(json.dumps(asdict(runner.run(read(options)))))
        return
    names = ("address", "streams", "rounds", "prompt", "new", "vocabulary", "processes")
    print(json.dumps(measure(**{name: getattr(options, name) for name in names})))


if __name__ == "__main__":
    main()
