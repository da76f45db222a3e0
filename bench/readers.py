"""One process of readers: so many streams at once, each begins its next generation when the last one has ended.

Started by bench.service. Says `ready`, and takes a line with two points in time (time.monotonic()): what comes between
them is counted, and every token of every generation is checked (bench/seen.py). Prints one JSON line.
"""

import argparse
import asyncio
import json
import random
import sys
import time

import grpc
import uvloop

from bench.paced import FIRST_ID, VOCABULARY
from bench.seen import Checked, Seen
from llamaherd.v1 import common_pb2, generation_pb2, generation_pb2_grpc

RAMP_S = 1.0
GENERATION_TIMEOUT_S = 300.0
LINGER_S = 1.0  # so that the process is still there when its CPU time is read


class Reader:
    """One stream after another."""

    def __init__(self, stub: generation_pb2_grpc.GenerationServiceStub, seen: Seen) -> None:
        self._stub = stub
        self._seen = seen

    async def run(self, rng: random.Random, prompt: int, new: int) -> None:
        """Until the end. The first generation is cut somewhere, so that ends do not come all at once."""
        await asyncio.sleep(rng.random() * RAMP_S)
        length = rng.randint(1, new)
        while time.monotonic() < self._seen.end_s:
            ids = [1, *(rng.randrange(FIRST_ID, VOCABULARY) for _ in range(prompt - 1))]
            try:
                await self._read(ids, length)
            except grpc.aio.AioRpcError as error:
                self._seen.wrong.append(f"{error.code().name}: {error.details()}")
                await asyncio.sleep(0.1)
            length = new

    async def _read(self, ids: list[int], length: int) -> None:
        """One generation, checked."""
        spec = common_pb2.GenerationSpec(
            token_ids=common_pb2.TokenIds(ids=ids),
            sampling=common_pb2.Sampling(temperature=0),
            stopping=common_pb2.Stopping(max_new_tokens=length),
        )
        checked, num_told = Checked(self._seen, ids[-1]), -1
        request = generation_pb2.GenerateRequest(spec=spec)
        async for response in self._stub.Generate(request, timeout=GENERATION_TIMEOUT_S):
            checked.take(response.tokens)
            if response.HasField("completed"):
                num_told = response.completed.usage.output_tokens
        checked.ended(length, num_told)


def open_channels(address: str, number: int) -> list[grpc.aio.Channel]:
    """So many connections."""
    return [grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(number)]


async def read(options: argparse.Namespace, begin_s: float, end_s: float) -> Seen:
    """All streams of this process, over several connections."""
    seen = Seen(begin_s, end_s)
    channels = open_channels(options.address, options.channels)
    readers = [Reader(generation_pb2_grpc.GenerationServiceStub(channel), seen) for channel in channels]
    async with asyncio.TaskGroup() as group:
        for number in range(options.streams):
            rng = random.Random(f"{options.seed} {number}")
            group.create_task(readers[number % len(readers)].run(rng, options.prompt, options.new))
    for channel in channels:
        await channel.close()
    await asyncio.sleep(max(0.0, end_s + LINGER_S - time.monotonic()))
    return seen


def main() -> None:
    """Parse the arguments, read, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    for name, default in (("streams", 1), ("channels", 1), ("prompt", 64), ("new", 256), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    print("ready", flush=True)
    begin_s, end_s = map(float, sys.stdin.readline().split())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        seen = runner.run(read(options, begin_s, end_s))
    json.dump(seen.to_json(), sys.stdout)


if __name__ == "__main__":
    main()
