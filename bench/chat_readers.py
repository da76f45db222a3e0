"""One process of conversations, each on a `Chat` stream of its own: idle ones, or such that have a turn now and then.

Started by bench.chat. Opens them all, lets each have one turn, and says `ready`; then takes a line with two points in
time (time.monotonic()). With `--every-ms` each conversation begins a turn so often until the second of them; without,
it does nothing. Every token is checked (bench/seen.py). Prints one JSON line when all streams have ended.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from typing import Any

import grpc
import uvloop

from bench.paced import FIRST_ID, VOCABULARY, paced_text
from bench.readers import LINGER_S, open_channels
from bench.seen import Checked, Seen
from llamaherd.v1 import chat_pb2, chat_pb2_grpc, common_pb2

OPENED_TOGETHER = 16
STEP_TIMEOUT_S = 60.0  # a turn or an opening that takes longer counts as wrong


class Conversation:
    """One stream. `seen` takes what its turns bring."""

    def __init__(self, stub: chat_pb2_grpc.ChatServiceStub, rng: random.Random, prompt: int, new: int) -> None:
        self._stub = stub
        self._rng = rng
        self._prompt = prompt
        self._new = new

    async def open(self) -> None:
        """Begin the stream only now: a gateway waits half a minute for a setup."""
        self._call: Any = self._stub.Chat()
        setup = chat_pb2.ChatSetup(
            sampling=common_pb2.Sampling(temperature=0), stopping=common_pb2.Stopping(max_new_tokens=self._new)
        )
        await self._call.write(chat_pb2.ChatRequest(setup=setup))
        ready = await self._call.read()
        assert ready.HasField("ready"), ready

    async def turn(self, seen: Seen) -> None:
        """Say something, and check the answer."""
        ids = [self._rng.randrange(FIRST_ID, VOCABULARY) for _ in range(self._prompt)]
        said = chat_pb2.UserMessage(content="".join(map(paced_text, ids)))
        checked = Checked(seen, ids[-1])
        await self._call.write(chat_pb2.ChatRequest(user_message=said))
        while (response := await self._call.read()) is not grpc.aio.EOF:
            checked.take(response.tokens)
            match response.WhichOneof("event"):
                case "turn_finished":
                    checked.ended(self._new, response.turn_finished.usage.output_tokens)
                    return
                case "turn_failed":
                    seen.wrong.append(response.turn_failed.status.message)
                    return
        seen.wrong.append("the stream ended")

    async def talk(self, seen: Seen, every_s: float) -> None:
        """A turn every so often until the end; a late one does not make the next ones come closer."""
        next_s = time.monotonic() + self._rng.random() * every_s
        while next_s < seen.end_s:
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))
            next_s = max(next_s, time.monotonic()) + every_s
            async with asyncio.timeout(STEP_TIMEOUT_S):
                await self.turn(seen)

    async def close(self) -> None:
        """End it: nothing of it stays, and the service ends the stream."""
        await self._call.write(chat_pb2.ChatRequest(end=chat_pb2.EndSession()))
        while await self._call.read() is not grpc.aio.EOF:
            pass


async def converse(options: argparse.Namespace) -> Seen:
    """All conversations of this process, over several connections."""
    channels = open_channels(options.address, options.channels)
    stubs = [chat_pb2_grpc.ChatServiceStub(channel) for channel in channels]
    rngs = [random.Random(f"{options.seed} {number}") for number in range(options.sessions)]
    together = [
        Conversation(stubs[number % len(stubs)], rng, options.prompt, options.new) for number, rng in enumerate(rngs)
    ]
    opening = Seen(0.0, 0.0)
    places = asyncio.Semaphore(OPENED_TOGETHER)

    async def begin(conversation: Conversation) -> None:
        async with places, asyncio.timeout(STEP_TIMEOUT_S):
            await conversation.open()
            await conversation.turn(opening)

    await asyncio.gather(*map(begin, together))
    print("ready", flush=True)
    begin_s, end_s = map(float, (await asyncio.to_thread(sys.stdin.readline)).split())
    seen = Seen(begin_s, end_s, ended=opening.ended, wrong=opening.wrong)
    if options.every_ms:
        await asyncio.gather(*(each.talk(seen, options.every_ms / 1000) for each in together))
    await asyncio.sleep(max(0.0, end_s + LINGER_S - time.monotonic()))
    await asyncio.gather(*(each.close() for each in together))
    for channel in channels:
        await channel.close()
    return seen


def main() -> None:
    """Parse the arguments, converse, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    for name, default in (("sessions", 1), ("channels", 1), ("prompt", 32), ("new", 64), ("every-ms", 0), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        seen = runner.run(converse(options))
    json.dump(seen.to_json(), sys.stdout)


if __name__ == "__main__":
    main()
