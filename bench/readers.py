"""One process of readers: so many streams at once, each begins its next generation when the last one has ended.

Started by bench.service. Says `ready`, and takes a line with two points in time (time.monotonic()): what comes between
them is counted, and every token of every generation is checked: its id, position and chain, `completed` last. Prints
one JSON line.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from dataclasses import asdict, dataclass, field

import grpc
import uvloop

from bench.histogram import Histogram
from bench.paced import VOCABULARY, paced_id
from contract.messages import CHAIN_START, extend_chain
from llamaherd.v1 import common_pb2, generation_pb2, generation_pb2_grpc

RAMP_S = 1.0
GENERATION_TIMEOUT_S = 300.0
LINGER_S = 1.0  # so that the process is still there when its CPU time is read


@dataclass(slots=True)
class Seen:
    """What the readers saw between the two points in time; `ended` and what is wrong of the whole run."""

    tokens: int = 0
    messages: int = 0
    ended: int = 0
    wrong: list[str] = field(default_factory=list)
    first: Histogram = field(default_factory=Histogram)
    gaps: Histogram = field(default_factory=Histogram)

    def to_json(self) -> dict[str, object]:
        """For the process that started this one."""
        return {**asdict(self), "first": self.first.to_json(), "gaps": self.gaps.to_json()}


class Reader:
    """One stream after another."""

    def __init__(self, stub: generation_pb2_grpc.GenerationServiceStub, seen: Seen, begin_s: float, end_s: float):
        self._stub = stub
        self._seen = seen
        self._begin_s = begin_s
        self._end_s = end_s

    async def run(self, rng: random.Random, prompt: int, new: int) -> None:
        """Until the end. The first generation is cut somewhere, so that ends do not come all at once."""
        await asyncio.sleep(rng.random() * RAMP_S)
        length = rng.randint(1, new)
        while time.monotonic() < self._end_s:
            ids = [1, *(rng.randrange(3, VOCABULARY) for _ in range(prompt - 1))]
            try:
                await self._read(ids, length)
            except grpc.aio.AioRpcError as error:
                self._seen.wrong.append(f"{error.code().name}: {error.details()}")
                await asyncio.sleep(0.1)
            length = new

    async def _read(self, ids: list[int], length: int) -> None:
        """One generation, checked."""
        seen = self._seen
        spec = common_pb2.GenerationSpec(
            token_ids=common_pb2.TokenIds(ids=ids),
            sampling=common_pb2.Sampling(temperature=0),
            stopping=common_pb2.Stopping(max_new_tokens=length),
        )
        last_s = time.monotonic()
        position, chain, is_right, completed = 0, CHAIN_START, True, None
        request = generation_pb2.GenerateRequest(spec=spec)
        async for response in self._stub.Generate(request, timeout=GENERATION_TIMEOUT_S):
            if tokens := response.tokens:
                now_s = time.monotonic()
                if self._begin_s <= now_s < self._end_s:
                    (seen.gaps if position else seen.first).add(now_s - last_s)
                    seen.tokens += len(tokens)
                    seen.messages += 1
                last_s = now_s
                for token in tokens:
                    chain = extend_chain(chain, 0, token.id)
                    is_right &= token.id == paced_id(ids[-1], position)
                    is_right &= token.position == position and token.chain == chain
                    position += 1
            if response.HasField("completed"):
                completed = response.completed
        seen.ended += 1
        if not is_right or position != length or completed is None or completed.usage.output_tokens != length:
            seen.wrong.append(f"{position} of {length} tokens, ids and chains right: {is_right}")


async def read(options: argparse.Namespace, begin_s: float, end_s: float) -> Seen:
    """All streams of this process, over several connections."""
    seen = Seen()
    channels = [
        grpc.aio.insecure_channel(options.address, [("grpc.use_local_subchannel_pool", 1)])
        for _ in range(options.channels)
    ]
    readers = [Reader(generation_pb2_grpc.GenerationServiceStub(channel), seen, begin_s, end_s) for channel in channels]
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
