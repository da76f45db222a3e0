"""Every name in telemetry/names.py is told by a real herd to which everything happens that is counted."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
import redis.asyncio

from contract import keys
from contract.broker import Broker
from llamaherd.v1 import chat_pb2, chat_pb2_grpc, common_pb2, generation_pb2, generation_pb2_grpc
from telemetry import names
from telemetry.names import METRICS, Metric
from tests.herd_process import ROOT, HerdProcess, herd_up
from tests.otlp_receiver import Receiver, otlp_receiver
from tests.service.narrow import NARROW
from tests.until import until

SHORT, LONG = 240, 600  # tokens of a generation; both fit the KV cache alone
TIMEOUT_S = 280
SETTINGS = {
    "HERD_WORKER_MAX_SEQUENCES": "3",
    "HERD_WORKER_PREFILL_CHUNK": "4",  # so that a long prompt takes long, and a worker can be killed in the midst of it
    "HERD_WORKER_KV_CACHE_BYTES": str(4 << 20),  # less than three SHORT generations need
    "HERD_GATEWAY_WRITE_TIMEOUT_S": "1",
    "OTEL_METRIC_EXPORT_INTERVAL": "100",
    "OTEL_BSP_SCHEDULE_DELAY": "100",
}


@dataclass(slots=True)
class Victim:
    """A herd of two workers, and the collector that it tells everything.

    Attributes:
        largest: the largest value told so far, by (metric, service), of the first `num_seen` points. All of them are
            many thousands in the end, and are asked for again and again.
    """

    herd: HerdProcess
    receiver: Receiver
    broker: Broker
    redis: Any
    stub: generation_pb2_grpc.GenerationServiceStub
    chat: chat_pb2_grpc.ChatServiceStub
    largest: dict[tuple[str, str], float] = field(default_factory=dict)
    num_seen: int = 0

    def told(self, metric: Metric, service: str = "") -> float:
        """The largest value that any process has told; of any service, or of one."""
        new = self.receiver.points[self.num_seen :]
        self.num_seen += len(new)
        for point in new:
            for key in ((point.name, point.service), (point.name, "")):
                self.largest[key] = max(self.largest.get(key, 0.0), point.value)
        return self.largest.get((metric.name, service), 0.0)

    async def until_told(self, metric: Metric, service: str = "") -> None:
        """Wait for a value that is not 0."""
        await until(lambda: self.told(metric, service) > 0, 60, what=f"{metric.name} of {service or 'any'} is told")

    async def owner_pids(self, generation_id: str) -> list[int]:
        """Supervisor, what serves, and engine of the worker that runs the generation, once one does."""
        found: list[list[int]] = []

        async def is_owned() -> bool:
            owner = (await self.redis.hget(keys.record(generation_id), "owner") or b"").decode()
            for beat in await self.broker.pool():
                if owner and beat.worker_id == owner:
                    found.append([int(beat.fields[name]) for name in ("supervisor_pid", "serving_pid", "pid")])
            return bool(found)

        await until(is_owned, 60, what=f"a worker runs {generation_id}")
        return found[-1]


@pytest.fixture
async def victim() -> AsyncIterator[Victim]:
    """Its own: nothing of it is of use to another test afterwards."""
    with otlp_receiver() as receiver:
        env = {**SETTINGS, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint}
        with herd_up("--device", "cpu", "--workers", "2", env=env) as herd:
            broker, client = Broker.connect(herd.redis_url), redis.asyncio.Redis.from_url(herd.redis_url)
            async with grpc.aio.insecure_channel(herd.address) as channel:
                stub = generation_pb2_grpc.GenerationServiceStub(channel)
                yield Victim(herd, receiver, broker, client, stub, chat_pb2_grpc.ChatServiceStub(channel))
            await broker.close()
            await client.aclose()


@pytest.mark.timeout(600)
async def test_every_name_is_told(victim: Victim) -> None:
    """Metrics with a value that is not 0, and with no label but their own; spans, and attributes of either."""
    await ask_as_a_caller_would(victim)
    await read_nothing(victim)
    await more_than_fits(victim)
    await freeze_a_worker(victim)
    await silence_redis(victim)
    await take_the_file_away(victim)
    await kill_until_poison(victim)

    for metric in METRICS:
        await victim.until_told(metric)
    allowed = {metric.name: set(metric.labels) for metric in METRICS}
    points, spans = tuple(victim.receiver.points), tuple(victim.receiver.spans)
    assert {p.name for p in points} == allowed.keys()
    assert [p for p in points if not p.attributes.keys() <= allowed[p.name]] == []
    attributes = [each.attributes for each in points] + [each.attributes for each in spans]
    stated = {span.name for span in spans} | {key for each in attributes for key in each}
    wanted = {value for name, value in vars(names).items() if name.startswith(("SPAN_", "ATTR_"))}
    assert wanted - stated == set()


async def ask_as_a_caller_would(victim: Victim) -> None:
    """One answer by `herd generate`, which opens the trace; one about a model that is not there; one turn of a chat."""
    for model, status in (("demo", 0), ("no-such-model", 1)):
        command = [sys.executable, "-m", "herd", "generate", "Count to ten", "--temperature", "0.5", "--model", model]
        env = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": victim.receiver.endpoint}
        whole = [*command, "--address", victim.herd.address]
        done = await asyncio.to_thread(subprocess.run, whole, cwd=ROOT, env=env, capture_output=True, check=False)
        assert done.returncode == status, done.stderr
    message = chat_pb2.UserMessage(content="Count to ten")
    turn = victim.chat.SendTurn(chat_pb2.SendTurnRequest(setup=chat_pb2.ChatSetup(), user_message=message))
    assert [m async for m in turn][-1].HasField("turn_finished")


async def read_nothing(victim: Victim) -> None:
    """A client that asks for more than its window holds, and takes none of it."""
    spec = common_pb2.GenerationSpec(prompt="Once upon a time", output=common_pb2.OutputOptions(top_logprobs=20))
    spec.stopping.max_new_tokens = LONG
    spec.stopping.ignore_eos = True
    async with grpc.aio.insecure_channel(victim.herd.address, options=NARROW) as channel:
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)
        call = stub.Generate(generation_pb2.GenerateRequest(spec=spec), timeout=TIMEOUT_S)
        await generation_of(call)
        await victim.until_told(names.STALLED_READERS)


async def more_than_fits(victim: Victim) -> None:
    """Three generations a worker, whose KV cache cannot hold them to their ends, and as many more that wait."""
    calls = [start(victim, SHORT) for _ in range(8)]
    await victim.until_told(names.QUEUE_DEPTH)
    await victim.until_told(names.PREEMPTIONS)
    await victim.until_told(names.RUNNING)
    await asyncio.gather(*(read(call, SHORT) for call in calls))


async def freeze_a_worker(victim: Victim) -> None:
    """Another takes its job over; thawed, it finds its lease lost. The stream goes on without a gap."""
    call = start(victim, LONG)
    pids = await victim.owner_pids(await generation_of(call))
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    await read(call, LONG)
    for pid in reversed(pids):
        os.kill(pid, signal.SIGCONT)
    await victim.until_told(names.LEASE_LOSSES)


async def silence_redis(victim: Victim) -> None:
    """Frozen until gateway and workers have noticed; then the stream goes on, and a late reader has it from the log."""
    call = start(victim, LONG)
    generation_id = await generation_of(call)
    os.kill(victim.herd.pids["valkey"], signal.SIGSTOP)
    for service in ("llamaherd-gateway", "llamaherd-worker-supervisor"):
        await victim.until_told(names.REDIS_OUTAGES, service)
    os.kill(victim.herd.pids["valkey"], signal.SIGCONT)
    await read(call, LONG)
    await read(victim.stub.Attach(generation_pb2.AttachRequest(generation_id=generation_id), timeout=TIMEOUT_S), LONG)


async def take_the_file_away(victim: Victim) -> None:
    """Redis keeps no append-only file for a while: gateway and workers say so."""
    await victim.redis.config_set("appendonly", "no")
    for service in ("llamaherd-gateway", "llamaherd-worker-supervisor"):
        await victim.until_told(names.REDIS_WEAKNESSES, service)
    await victim.redis.config_set("appendonly", "yes")


async def kill_until_poison(victim: Victim) -> None:
    """One job, and every worker that takes it dies of it before it makes a token, as far as anyone can tell."""
    spec = common_pb2.GenerationSpec(token_ids=common_pb2.TokenIds(ids=[1] + [300] * (LONG - 1)))
    spec.stopping.max_new_tokens = 10
    call = victim.stub.Generate(generation_pb2.GenerateRequest(spec=spec), timeout=TIMEOUT_S)
    generation_id = await generation_of(call)
    killed: set[int] = set()
    while len(killed) < 3:
        *_, engine_pid = await victim.owner_pids(generation_id)
        if engine_pid not in killed:
            os.kill(engine_pid, signal.SIGKILL)
            killed.add(engine_pid)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await read(call, LONG)
    assert failed.value.code() is grpc.StatusCode.INTERNAL


def start(victim: Victim, num_tokens: int) -> Any:
    """A stream of so many tokens."""
    spec = common_pb2.GenerationSpec(prompt="Once upon a time")
    spec.stopping.max_new_tokens = num_tokens
    spec.stopping.ignore_eos = True
    return victim.stub.Generate(generation_pb2.GenerateRequest(spec=spec), timeout=TIMEOUT_S)


async def generation_of(call: Any) -> str:
    """The id, from the first message."""
    first = await call.read()
    return str(first.accepted.generation_id)


async def read(call: Any, num_tokens: int) -> None:
    """To the end, without a gap."""
    position = 0
    while (message := await call.read()) is not grpc.aio.EOF:
        for token in message.tokens:
            assert token.position == position
            position += 1
    assert position == num_tokens
