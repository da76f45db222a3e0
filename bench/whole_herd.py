"""The processes of a whole herd for a measurement: Redis, gateways on one port, one worker without a model."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.paced import MODEL
from bench.procfs import children
from contract.lifetime import spawn
from herd.valkey import server_command

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a herd is to be like.

    Attributes:
        rate: tokens/s of all streams that the worker makes; 0 for no bound.
        step_s: its shortest step.
        cores: where all its processes run.
    """

    gateways: int
    appendfsync: str
    rate: float
    step_s: float
    max_streams: int
    cores: frozenset[int]


@dataclass(frozen=True, slots=True)
class Herd:
    """A herd that serves. `pids` by what they are: gateway, engine, supervisor, redis."""

    address: str
    redis_url: str
    pids: dict[str, list[int]]


@asynccontextmanager
async def whole_herd(shape: Shape) -> AsyncIterator[Herd]:
    """Start it, wait until every gateway serves, and stop it at the end. Logs go where stderr goes, if warnings."""
    with TemporaryDirectory(prefix="bench-") as folder, ExitStack() as stack:
        run_dir = Path(folder)
        redis_command = _redis_command(run_dir, shape.appendfsync)
        redis = stack.enter_context(_running(redis_command, {}, shape.cores, subprocess.DEVNULL))
        url = f"unix://{run_dir / 'v.sock'}"
        port = stack.enter_context(_reserved_port())
        gateway_env = {
            "HERD_GATEWAY_REDIS_URL": url,
            "HERD_GATEWAY_PORT": str(port),
            "HERD_GATEWAY_LOG_LEVEL": "warning",
        }
        worker_env = {
            "HERD_WORKER_REDIS_URL": url,
            "HERD_WORKER_MODEL_PATH": folder,
            "HERD_WORKER_MODEL_NAME": MODEL,
            "HERD_WORKER_MAX_SEQUENCES": str(shape.max_streams),
            "HERD_WORKER_LOG_LEVEL": "warning",
            "PACED_RATE": str(shape.rate),
            "PACED_STEP_S": str(shape.step_s),
        }
        worker = stack.enter_context(_running([sys.executable, "-m", "bench.paced"], worker_env, shape.cores))
        gateway = [sys.executable, "-m", "service"]
        gateways = [stack.enter_context(_running(gateway, gateway_env, shape.cores)) for _ in range(shape.gateways)]
        await _serves(f"127.0.0.1:{port}", shape.gateways)
        pids = {
            "gateway": [process.pid for process in gateways],
            "engine": children(worker.pid),
            "supervisor": [worker.pid],
            "redis": [redis.pid],
        }
        yield Herd(f"127.0.0.1:{port}", url, pids)


def _redis_command(run_dir: Path, appendfsync: str) -> list[str]:
    return [*server_command(run_dir / "v.sock", run_dir), "--appendfsync", appendfsync, "--loglevel", "warning"]


@contextmanager
def _running(
    command: list[str], env: dict[str, str], cores: frozenset[int], stdout: int | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    path = os.pathsep.join((str(ROOT), str(ROOT / "clients/python"), os.environ.get("PYTHONPATH", "")))
    process = spawn(command, env={**os.environ, **env, "PYTHONPATH": path}, stdout=stdout)
    os.sched_setaffinity(process.pid, cores)  # before it has children or threads
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _reserved_port() -> Iterator[int]:
    """Hold a free port that the gateways then share; a socket that never listens gets no connections."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


async def _serves(address: str, gateways: int) -> None:
    """Return when many new connections in a row find a gateway that serves: all of them do, then."""
    in_a_row = 0
    async with asyncio.timeout(START_TIMEOUT_S):
        while in_a_row < 12 * gateways - 11:
            in_a_row = in_a_row + 1 if await _answers(address) else 0
            await asyncio.sleep(0 if in_a_row else 0.1)


async def _answers(address: str) -> bool:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
