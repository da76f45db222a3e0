"""What a herd counts adds up with what its callers saw, also when a worker dies, and arrives over OTLP as well."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import grpc
import pytest

from contract import exit_status
from llamaherd.v1 import common_pb2, generation_pb2, generation_pb2_grpc
from telemetry import names
from tests.herd_process import ROOT, HerdProcess, herd_up
from tests.otlp_receiver import Receiver, otlp_receiver
from tests.ports import free_ports
from tests.scraped import Scrape, scrape
from tests.until import until

MODEL = "demo"
LONG_ONE = "Count to one hundred"


@dataclass(frozen=True, slots=True)
class Watched:
    """A herd, where its processes tell Prometheus, and the collector they tell too."""

    herd: HerdProcess
    gateway_port: int
    worker_port: int
    receiver: Receiver

    def gateway(self) -> Scrape:
        """What the gateway tells now."""
        return scrape(self.gateway_port)

    def worker(self) -> Scrape:
        """What the worker tells now, supervisor and engine process together."""
        return scrape(self.worker_port)


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    """One gateway and one worker with the demo model."""
    with free_ports(2) as (gateway_port, worker_port), otlp_receiver() as receiver:
        env = {
            "HERD_GATEWAY_METRICS_PORT": str(gateway_port),
            "HERD_WORKER_METRICS_PORT": str(worker_port),
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_METRIC_EXPORT_INTERVAL": "200",
        }
        with herd_up("--device", "cpu", env=env) as herd:
            yield Watched(herd, gateway_port, worker_port, receiver)


def request(text: str, **stopping: int) -> generation_pb2.GenerateRequest:
    """A greedy chat of one message."""
    message = common_pb2.ChatMessage(role=common_pb2.ROLE_USER, content=text)
    spec = common_pb2.GenerationSpec(chat=common_pb2.ChatInput(messages=[message]))
    spec.sampling.temperature = 0
    for name, value in stopping.items():
        setattr(spec.stopping, name, value)
    return generation_pb2.GenerateRequest(spec=spec)


@dataclass(slots=True)
class Answer:
    """What one caller received."""

    num_prompt_tokens: int = 0
    num_tokens: int = 0


async def ask(watched: Watched, asked: generation_pb2.GenerateRequest, answer: Answer) -> Answer:
    """Stream it to its end."""
    async with grpc.aio.insecure_channel(watched.herd.address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        async for response in stub.Generate(asked, timeout=100):
            answer.num_prompt_tokens += response.accepted.prompt_tokens
            answer.num_tokens += len(response.tokens)
    return answer


async def test_counts_are_what_callers_received(watched: Watched) -> None:
    """Tokens in and out, requests, first tokens, queue times: of gateway and worker alike."""
    before, worker_before = watched.gateway(), watched.worker()
    answers = await asyncio.gather(*(ask(watched, request(f"Count to {n}"), Answer()) for n in range(3, 11)))
    after, worker_after = watched.gateway(), watched.worker()

    def grown(metric: names.Metric, suffix: str = "", **labels: str) -> float:
        pairs = {names.Source.GATEWAY: (before, after)}
        first, last = pairs.get(metric.sources[0], (worker_before, worker_after))
        return last.value(metric, suffix, **labels) - first.value(metric, suffix, **labels)

    num_out, num_in = sum(a.num_tokens for a in answers), sum(a.num_prompt_tokens for a in answers)
    assert grown(names.SENT_TOKENS) == num_out
    assert grown(names.TOKENS, gen_ai_token_type="output", gen_ai_request_model=MODEL) == num_out
    assert grown(names.TOKENS, gen_ai_token_type="input", gen_ai_request_model=MODEL) == num_in
    assert grown(names.TOKEN_USAGE, "_sum", gen_ai_token_type="output") == num_out
    assert grown(names.TOKEN_USAGE, "_sum", gen_ai_token_type="input") == num_in
    for metric in (names.REQUEST_DURATION, names.TIME_TO_FIRST_TOKEN, names.TIME_PER_OUTPUT_TOKEN):
        assert grown(metric, "_count", gen_ai_request_model=MODEL, gen_ai_operation_name="chat") == len(answers)
    assert grown(names.RPC_DURATION, "_count", rpc_response_status_code="OK") == len(answers)
    assert grown(names.QUEUE_DURATION, "_count", llamaherd_priority="normal") == len(answers)
    assert grown(names.STEP_DURATION, "_count") == grown(names.BATCH_SIZE, "_count") > 0
    assert grown(names.BATCH_SIZE, "_sum") == num_out  # a short prompt's one step makes its first token
    assert after.value(names.LIVE_WORKERS, gen_ai_request_model=MODEL) == 1
    assert worker_after.value(names.KV_TOTAL) > 0
    await until(lambda: watched.worker().value(names.RUNNING) == watched.worker().value(names.KV_USED) == 0)


async def test_an_error_is_counted_under_its_code(watched: Watched) -> None:
    """A request that never was valid gives no gen_ai metric, so its words cannot become labels."""
    before = watched.gateway()
    wrong = generation_pb2.GenerateRequest(spec=common_pb2.GenerationSpec(model="no-such-model", prompt="x"))
    with pytest.raises(grpc.aio.AioRpcError, match="no-such-model"):
        await ask(watched, wrong, Answer())
    after = watched.gateway()

    labels = {"rpc_response_status_code": "NOT_FOUND", "error_type": "UNKNOWN_MODEL"}
    grown = after.value(names.RPC_DURATION, "_count", **labels) - before.value(names.RPC_DURATION, "_count", **labels)
    assert grown == 1
    assert not any("no-such-model" in label for _, labels in after.samples for pair in labels for label in pair)


async def test_a_killed_engine_process_is_counted(watched: Watched) -> None:
    """SIGKILL in mid-stream: restart, reap and redelivery count, and the tokens of before are still told."""
    before, answer = watched.worker(), Answer()
    asking = asyncio.create_task(ask(watched, request(LONG_ONE), answer))
    await until(lambda: answer.num_tokens > 20)
    running, streams = watched.worker(), watched.gateway().value(names.STREAMS)
    os.kill(watched.herd.engine_pid("worker-0"), signal.SIGKILL)
    await asking
    after = watched.worker()

    assert (running.value(names.RUNNING), streams) == (1, 1)
    assert running.value(names.KV_USED) > 0
    for metric in (names.ENGINE_RESTARTS, names.REAPS):
        assert after.value(metric) - before.value(metric) == 1
    assert after.value(names.REDELIVERIES) == 1  # of the new engine process
    made = after.value(names.TOKENS, gen_ai_token_type="output") - before.value(
        names.TOKENS, gen_ai_token_type="output"
    )
    assert made >= answer.num_tokens
    await until(lambda: watched.gateway().value(names.STREAMS) == 0)


async def test_metrics_arrive_over_otlp(watched: Watched) -> None:
    """From all three processes, with the units and the buckets that the conventions give."""
    await ask(watched, request("Count to five"), Answer())

    def arrived(metric: names.Metric) -> bool:
        return any(
            (point.name, point.unit) == (metric.name, metric.unit)
            and (metric.kind is not names.Kind.HISTOGRAM or point.bounds == metric.buckets)
            for point in tuple(watched.receiver.points)
        )

    for metric in names.METRICS:
        await until(partial(arrived, metric), what=f"{metric.name} arrives")
    services = {point.service for point in watched.receiver.points}
    assert services == {"llamaherd-gateway", "llamaherd-worker", "llamaherd-worker-supervisor"}


@pytest.mark.parametrize("process", ["service", "worker"])
def test_a_port_that_is_taken_stops_the_process(process: str) -> None:
    """It says which, and with what status it ended."""
    prefix = {"service": "HERD_GATEWAY", "worker": "HERD_WORKER"}[process]
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        env = {**os.environ, f"{prefix}_METRICS_PORT": str(port), "HERD_WORKER_MODEL_PATH": "/nowhere"}
        command = [sys.executable, "-m", process]
        ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=60)
    (line,) = [json.loads(line) for line in ended.stderr.splitlines()]

    assert ended.returncode == {"service": 1, "worker": exit_status.UNFIT}[process]
    assert (line["event"], line["port"]) == ("metrics cannot be served", port)
