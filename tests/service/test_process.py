"""The gateway as a process: what it loads, how it is set up, what it says, and how it ends."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from contract import exit_status
from contract.broker import Broker
from contract.lifetime import die_with_parent
from herd.machine import reserved_port
from llamaherd.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc
from service.settings import GatewaySettings
from telemetry import names
from tests.herd_process import ROOT
from tests.otlp_receiver import ReceivedSpan, otlp_receiver
from tests.redis_server import RunningServer, start_valkey
from tests.service.bundles import bundle
from tests.service.conftest import short_folder
from tests.service.gateways import Received, prompt, read_rest
from tests.service.scripted_worker import ScriptedWorker, scripted_worker
from tests.until import until


@dataclass(slots=True)
class Process:
    """A gateway process and the file its log goes to."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def events(self) -> list[dict[str, Any]]:
        """Every line so far, parsed."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    async def wait_for(self, event: str) -> dict[str, Any]:
        """The first line of this event, once it is there."""

        def is_there() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return any(line["event"] == event for line in self.events())

        await until(is_there, what=event)
        return next(line for line in self.events() if line["event"] == event)

    async def end(self) -> int:
        """The exit status, once it has ended by itself."""
        return await asyncio.to_thread(self.process.wait, 20)


def environment(**variables: str) -> dict[str, str]:
    """This process' environment without settings of other gateways, and these."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HERD_", "OTEL_"))}
    return inherited | {"PYTHONPATH": f"{ROOT}:{ROOT}/clients/python"} | variables


@contextmanager
def gateway_process(redis_url: str, log: Path, env: Mapping[str, str]) -> Iterator[Process]:
    """`python -m service`, on a free port unless `env` names one."""
    settings = {"HERD_GATEWAY_REDIS_URL": redis_url, "HERD_GATEWAY_PORT": "0"}
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "service"],
            cwd=ROOT,
            env=environment(**{**settings, **env}),
            stderr=sink,
            preexec_fn=die_with_parent,
        )
    try:
        yield Process(process, log)
    finally:
        process.kill()
        process.wait()


def run_service(**variables: str) -> "subprocess.CompletedProcess[str]":
    """`python -m service` to its end."""
    command = [sys.executable, "-m", "service"]
    return subprocess.run(
        command, cwd=ROOT, env=environment(**variables), capture_output=True, text=True, timeout=30, check=False
    )


def test_the_gateway_loads_no_torch() -> None:
    """Neither that nor transformers, nor the worker."""
    code = "import sys, service.__main__; print([m for m in sys.modules if m.split('.')[0] in %r])"
    banned = ("torch", "transformers", "worker", "herd", "bitsandbytes")
    done = subprocess.run(
        [sys.executable, "-c", code % (banned,)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == "[]"


def test_telemetry_loads_no_grpc() -> None:
    """The worker uses it too."""
    code = "import sys, telemetry.setup, telemetry.logs, telemetry.names; print('grpc' in sys.modules)"

    assert printed_by(code) == "False"


@pytest.mark.parametrize(
    ("limits", "raised", "is_warned"),
    [
        ((256, 2000), 1512, False),
        ((256, 1000), 1000, True),
        ((1600, 2000), 1600, False),
    ],
)
def test_open_files_are_raised_to_what_connections_need(limits: tuple[int, int], raised: int, is_warned: bool) -> None:
    """A thousand of them, in a process of its own: a hard limit that is lowered stays so."""
    code = (
        "import resource, service.open_files; files = resource.RLIMIT_NOFILE;"
        f"resource.setrlimit(files, {limits}); service.open_files.allow_connections(1000);"
        "print(*resource.getrlimit(files))"
    )
    *warnings, told = printed_by(code).splitlines()

    assert told == f"{raised} {limits[1]}"
    assert ["too few file descriptors for max_connections" in line for line in warnings] == [True] * is_warned


async def test_a_gateway_looks_after_its_open_files(tmp_path: Path) -> None:
    """At its start, before anybody connects; no Redis is there yet."""
    with gateway_process("redis://127.0.0.1:1", tmp_path / "log", {"HERD_GATEWAY_MAX_CONNECTIONS": "2000000000"}) as it:
        warned = await it.wait_for(
            "too few file descriptors for max_connections: raise the hard limit, or lower the setting"
        )

    assert warned["level"] == "warning"
    assert warned["needed"] == 2_000_000_512
    assert warned["allowed"] < warned["needed"]


def printed_by(code: str) -> str:
    """What a program prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("variables", "fact"),
    [
        ({"HERD_GATEWAY_MAX_STREAM": "9"}, "unknown settings: HERD_GATEWAY_MAX_STREAM"),
        ({"HERD_GATEWAY_PORT": "70000"}, "HERD_GATEWAY_PORT: Input should be less than or equal to 65535"),
        ({"HERD_GATEWAY_DEAD_AFTER_MS": "1"}, "greater than or equal to 300"),
        ({"HERD_GATEWAY_HOST": "0.0.0.0"}, "reachable by others"),
        ({"HERD_GATEWAY_TLS_KEY": "key.pem"}, "settings: tls_cert and tls_key go together"),
        ({"HERD_GATEWAY_REDIS_URL": "redis.example:6379"}, "'redis.example:6379' is no address of a Redis"),
    ],
)
def test_wrong_settings_stop_the_process(variables: dict[str, str], fact: str) -> None:
    """With a line that says which and why."""
    done = run_service(**variables)

    assert done.returncode == exit_status.UNFIT
    assert fact in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({}, "127.0.0.1:50051"),
        ({"host": "::1"}, "[::1]:50051"),
        ({"host": "localhost"}, "localhost:50051"),
        ({"host": "0.0.0.0", "insecure": True}, "0.0.0.0:50051"),
        ({"host": "::", "tls_cert": "c", "tls_key": "k"}, "[::]:50051"),
    ],
)
def test_an_address_that_others_reach_needs_tls_or_a_word(settings: dict[str, Any], address: str) -> None:
    """Loopback needs neither."""
    assert GatewaySettings(**settings).address == address


def test_an_address_of_another_host_is_a_clear_error(valkey: RunningServer) -> None:
    """One line, no stack trace, exit status 1."""
    done = run_service(HERD_GATEWAY_REDIS_URL=valkey.url, HERD_GATEWAY_HOST="203.0.113.1", HERD_GATEWAY_INSECURE="true")

    assert done.returncode == 1
    assert "gateway cannot run" in done.stderr
    assert "Traceback" not in done.stderr


async def test_one_span_a_request_and_one_line_with_its_trace(
    tmp_path: Path, valkey: RunningServer, worker: ScriptedWorker
) -> None:
    """Under the caller's trace; the job carries it on; prompts and texts stay out of spans and log."""
    trace_id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with otlp_receiver() as receiver:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        with gateway_process(valkey.url, tmp_path / "log", env) as process:
            port = (await process.wait_for("gateway listens"))["port"]
            await process.wait_for("serving")
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub = generation_pb2_grpc.GenerationServiceStub(channel)
                request = prompt("sesame", request_id="traced")
                request.spec.sampling.seed = 2**63
                call = stub.Generate(request, metadata=(("traceparent", f"00-{trace_id}-{parent}-01"),))
                received = Received([await call.read()])
                work = await worker.take(received.generation_id)
                await work.say("abracadabra")
                await work.finish()
                await read_rest(call, received)
            process.process.send_signal(signal.SIGTERM)
            assert await process.end() == 0
            (ended,) = [line for line in process.events() if line["event"] == "rpc ended"]
            text = process.log.read_text()
        (span,) = [span for span in receiver.spans if span.trace_id == trace_id]

    assert (span.parent_id, span.service) == (parent, "llamaherd-gateway")
    assert work.taken.job.trace_context["traceparent"] == f"00-{trace_id}-{span.span_id}-01"
    check_attributes(span, received)
    assert (ended["trace_id"], ended["span_id"]) == (trace_id, span.span_id)
    assert (ended["request_id"], ended["generation_id"], ended["code"]) == ("traced", received.generation_id, "OK")
    for secret in ("sesame", "abracadabra"):
        assert not any(secret in str(value) for value in span.attributes.values())
        assert secret not in text


def check_attributes(span: ReceivedSpan, received: Received) -> None:
    """What the span of the stream says."""
    said = span.attributes
    assert (span.name, said[names.ATTR_RPC_METHOD], said[names.ATTR_RPC_STATUS]) == (names.SPAN_RPC, span.name, "OK")
    assert (said[names.ATTR_OPERATION], said[names.ATTR_REQUEST_MODEL]) == ("text_completion", "chat")
    assert said[names.ATTR_REQUEST_SEED] == str(2**63)
    assert (said[names.ATTR_PROMPT_TOKENS], said[names.ATTR_OUTPUT_TOKENS]) == (8, 1)
    assert (said[names.ATTR_GENERATION_ID], said[names.ATTR_REQUEST_ID]) == (received.generation_id, "traced")
    assert isinstance(said[names.ATTR_TIME_TO_FIRST_CHUNK], float)


async def test_sigterm_drains_and_leaves_nothing(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A running stream gets its end; then the process ends with status 0 and no inbox is left."""
    server = start_valkey(short_folder(tmp_path_factory))
    broker = Broker.connect(server.url)
    async with scripted_worker(broker, {"chat": bundle()}) as worker:
        with gateway_process(server.url, tmp_path / "log", {}) as process:
            port = (await process.wait_for("gateway listens"))["port"]
            await process.wait_for("serving")
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                call = generation_pb2_grpc.GenerationServiceStub(channel).Generate(prompt())
                received = Received([await call.read()])
                work = await worker.take(received.generation_id)
                process.process.send_signal(signal.SIGTERM)
                watch = health_pb2_grpc.HealthStub(channel)

                async def is_draining() -> bool:
                    answer = await watch.Check(health_pb2.HealthCheckRequest())
                    return bool(answer.status == health_pb2.HealthCheckResponse.NOT_SERVING)

                await until(is_draining)
                await work.say("bye")
                await work.finish()
                await read_rest(call, received)
            assert await process.end() == 0
    assert received.text == "bye"
    left = [key async for key in broker._client.scan_iter(match="*:in:*")]
    await broker.close()
    server.kill()
    assert left == []


async def test_tls(tmp_path: Path, valkey: RunningServer, worker: ScriptedWorker) -> None:
    """With a certificate the port speaks TLS."""
    key, cert = await asyncio.to_thread(make_certificate, tmp_path)
    env = {"HERD_GATEWAY_TLS_KEY": str(key), "HERD_GATEWAY_TLS_CERT": str(cert)}
    with gateway_process(valkey.url, tmp_path / "log", env) as process:
        port = (await process.wait_for("gateway listens"))["port"]
        await process.wait_for("serving")
        credentials = grpc.ssl_channel_credentials(cert.read_bytes())
        async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())

    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate for localhost, signed by itself."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "1", "-keyout", str(key), "-out", str(cert)]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(command, check=True, capture_output=True)
    return key, cert


def test_what_a_gateway_has_loaded_is_left_out_of_collections() -> None:
    """Else a pass of the collector over all modules stops every stream at once."""
    program = """
import gc
from service import __main__ as gateway

async def serve(settings, stop):
    print(gc.get_freeze_count(), len(gc.get_objects()))

gateway.serve = serve
raise SystemExit(gateway.main())
"""
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    num_frozen, num_left = map(int, told.split())
    assert num_frozen > 20 * num_left


async def test_gateways_share_a_port(tmp_path: Path, valkey: RunningServer) -> None:
    """The kernel deals connections out to all of them; when one is gone, the others get every connection."""
    with reserved_port("127.0.0.1", 0) as port:
        env = {"HERD_GATEWAY_PORT": str(port)}
        with (
            gateway_process(valkey.url, tmp_path / "one", env) as one,
            gateway_process(valkey.url, tmp_path / "two", env) as two,
        ):
            for each in (one, two):
                assert (await each.wait_for("gateway listens"))["port"] == port

            async def is_answered() -> bool:
                options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
                async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
                    await model_pb2_grpc.ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest(), timeout=20)
                return all(any(line["event"] == "rpc ended" for line in each.events()) for each in (one, two))

            await until(is_answered, what="both have answered")
            one.process.kill()
            one.process.wait()
            for _ in range(8):
                assert await is_answered()
