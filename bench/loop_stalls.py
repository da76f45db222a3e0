"""How long a gateway's event loop serves nobody else while a long finished generation is read.

    python -m bench.loop_stalls

A real gateway in this process, on a real valkey; the log is written as a worker writes it. A ticker in the gateway's
loop notes the CPU time of the loop's thread between two of its turns, so that other work on the machine does not count.
"""

import argparse
import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc

from bench.paced import MODEL, paced_bundle
from contract import keys
from contract.broker import Broker, StepRow, Taken, new_lease
from contract.event_loop import freeze_loaded, new_event_loop
from contract.lifetime import spawn
from contract.messages import CHAIN_START, JOB_LEVEL, ChoiceEnd, EndReason, LoggedToken, encode_tokens
from herd.valkey import server_command
from llamaherd.v1 import chat_pb2, common_pb2, generation_pb2
from service.backoff import until_answered
from service.gateway import serve
from service.settings import GatewaySettings

TICK_S = 0.0005
ROW_TOKENS = 8
ROUNDS = 3
MAX_RECEIVED_BYTES = 8 * 1024 * 1024


class Ticker:
    """The longest turn of the loop since `begin`."""

    def __init__(self) -> None:
        self._turns_s: list[float] = []

    async def run(self) -> None:
        """For ever."""
        last_s = time.thread_time()
        while True:
            await asyncio.sleep(TICK_S)
            now_s = time.thread_time()
            self._turns_s.append(now_s - last_s)
            last_s = now_s

    def begin(self) -> None:
        """Forget what was."""
        self._turns_s.clear()

    @property
    def longest_ms(self) -> float:
        """In milliseconds of CPU time."""
        return 1e3 * max(self._turns_s, default=0.0)


class Worker:
    """Beats, and writes long answers."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._worker_id = keys.new_id()

    async def beat(self) -> None:
        """For ever."""
        while True:
            fields = {"model": MODEL, "state": "ready", "job_level": str(JOB_LEVEL)}
            await self._broker.worker_beat(self._worker_id, fields)
            await asyncio.sleep(0.1)

    async def answer(self, num_tokens: int) -> int:
        """Take the next job and write its whole log; the bytes of its tokens."""
        (entry,) = await self._broker.read_jobs(self._worker_id, MODEL, "normal", count=1, block_ms=10_000)
        taken = await self._broker.take(entry, worker_id=self._worker_id, lease=new_lease())
        assert isinstance(taken, Taken), "the job is gone"
        generation_id, chain, size = taken.job.generation_id, CHAIN_START, 0
        for start in range(0, num_tokens, ROW_TOKENS * 64):
            rows: list[StepRow] = []
            for t0 in range(start, min(start + ROW_TOKENS * 64, num_tokens), ROW_TOKENS):
                tokens = [LoggedToken(0, n, n, n % 32_000, f"w{n % 1000} ") for n in range(t0, t0 + ROW_TOKENS)]
                chain0 = chain
                body, chain = encode_tokens(tokens, chain)
                rows.append(StepRow(generation_id, taken.lease, t0, ROW_TOKENS, chain0, chain, body))
                size += len(body)
            for row in rows:
                await self._broker.step([row])
        end = ChoiceEnd(0, "EOS", num_tokens)
        last = (generation_id, taken.lease, num_tokens, 0, chain, chain, b"")
        await self._broker.step([StepRow(*last, end=EndReason.DONE, end_choices=(end,))])
        return size


@asynccontextmanager
async def gateway() -> AsyncIterator[tuple[str, Worker]]:
    """One that serves, its address, and the worker that it sees."""
    with TemporaryDirectory(prefix="bench-") as folder:
        socket = Path(folder) / "v.sock"
        redis = spawn(server_command(socket, Path(folder)), stdout=subprocess.DEVNULL)
        broker = Broker.connect(f"unix://{socket}")
        await until_answered(broker.now_ms)
        bundle, stop = paced_bundle(), asyncio.Event()
        await broker.announce(MODEL, bundle.digest, bundle.to_bytes())
        worker = Worker(broker)
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        settings = GatewaySettings(redis_url=f"unix://{socket}", port=0, log_level="error")
        async with asyncio.TaskGroup() as group:
            beating = group.create_task(worker.beat())
            group.create_task(serve(settings, stop, on_listening=port.set_result))
            yield f"127.0.0.1:{await port}", worker
            stop.set()
            beating.cancel()
        await broker.close()
        redis.kill()
        redis.wait()


class Client:
    """Calls from threads, whose answers are left as bytes: this process should do what a gateway does."""

    def __init__(self, address: str) -> None:
        options = [("grpc.max_receive_message_length", MAX_RECEIVED_BYTES)]
        self._channel = grpc.insecure_channel(address, options)

    async def unary(self, method: str, request: Any) -> bytes:
        """The answer."""
        call: Callable[..., bytes] = self._channel.unary_unary(
            f"/llamaherd.v1.{method}", type(request).SerializeToString
        )
        return await asyncio.to_thread(call, request)

    async def stream(self, method: str, request: Any) -> bytes:
        """All messages, joined."""
        call: Any = self._channel.unary_stream(f"/llamaherd.v1.{method}", type(request).SerializeToString)
        return await asyncio.to_thread(lambda: b"".join(call(request)))


async def submit(client: Client, spec: common_pb2.GenerationSpec, request_id: str) -> str:
    """Start a generation, as soon as the worker is seen."""
    request = generation_pb2.SubmitGenerationRequest(spec=spec, request_id=request_id)
    while True:
        try:
            answer = await client.unary("GenerationService/SubmitGeneration", request)
        except grpc.RpcError:
            await asyncio.sleep(0.1)
        else:
            return generation_pb2.SubmitGenerationResponse.FromString(answer).accepted.generation_id


async def main() -> None:
    """A row for each way to read it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=100_000)
    num_tokens = parser.parse_args().tokens // ROW_TOKENS * ROW_TOKENS
    ticker = Ticker()
    async with gateway() as (address, worker), asyncio.TaskGroup() as group:
        ticking = group.create_task(ticker.run())
        client = Client(address)
        spec = common_pb2.GenerationSpec(model=MODEL, prompt="hello")
        generation_id = await submit(client, spec, "long")
        size = await worker.answer(num_tokens)
        setup = chat_pb2.ChatSetup(model=MODEL)
        message = chat_pb2.UserMessage(content="hello", request_id="turn")
        session = await client.unary("ChatService/OpenSession", chat_pb2.OpenSessionRequest(setup=setup))
        handle = chat_pb2.OpenSessionResponse.FromString(session).ready.resumption_handle
        turn = chat_pb2.SendTurnRequest(session_handle=handle, user_message=message)
        talking = group.create_task(client.stream("ChatService/SendTurn", turn))
        await worker.answer(num_tokens)
        await talking
        reads: dict[str, Callable[[], Any]] = {
            "nothing": lambda: asyncio.sleep(1, b""),
            "GetGeneration": lambda: client.unary(
                "GenerationService/GetGeneration", generation_pb2.GetGenerationRequest(generation_id=generation_id)
            ),
            "Complete": lambda: client.unary(
                "GenerationService/Complete", generation_pb2.CompleteRequest(spec=spec, request_id="long")
            ),
            "Attach": lambda: client.stream(
                "GenerationService/Attach", generation_pb2.AttachRequest(generation_id=generation_id)
            ),
            "SendTurn, the same turn again": lambda: client.stream("ChatService/SendTurn", turn),
        }
        print(f"{num_tokens} tokens, {size:,} bytes of log")
        print("| read by | longest turns of the loop, ms | bytes |\n|---|---|---|")
        for what, read in reads.items():
            longest: list[float] = []
            for _ in range(ROUNDS):
                await asyncio.sleep(0.2)
                ticker.begin()
                answer = await read()
                await asyncio.sleep(5 * TICK_S)
                longest.append(ticker.longest_ms)
            shown = " / ".join(f"{each:.1f}" for each in longest)
            print(f"| {what} | {shown} | {len(answer):,} |", flush=True)
        ticking.cancel()


if __name__ == "__main__":
    freeze_loaded()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())
