"""The processes of a chaos run: a Redis, workers and gateways; each is started again whenever it ends."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from contract.broker import Broker, WorkerBeat
from contract.errors import BrokerDown
from contract.lifetime import spawn
from tests.faults.chaos.requests import MODEL
from tests.herd_process import is_alive
from tests.redis_server import RunningServer, start_valkey

DEMO_MODEL = Path(__file__).parents[3] / "herd" / "demo_model"
KEEP_S = 0.05
HEALTH_S = 1.0
CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
)
WORKER_VARIABLES = {
    "HERD_WORKER_MODEL_PATH": str(DEMO_MODEL),
    "HERD_WORKER_MODEL_NAME": MODEL,
    "HERD_WORKER_DEVICE": "cpu",
    "HERD_WORKER_QUANTIZATION": "none",
    "HERD_WORKER_THREADS": "1",
    "HERD_WORKER_MAX_SEQUENCES": "64",  # those that are left have room for all that one held
    "HERD_WORKER_KV_CACHE_BYTES": str(128 << 20),
    "HERD_WORKER_LOG_LEVEL": "warning",
    "HERD_WORKER_DRAIN_TIMEOUT_S": "2",
    "HERD_WORKER_RESTART_WINDOW_S": "10",  # a kill from outside is no crash loop: no long wait before the restart
}
GATEWAY_VARIABLES = {"HERD_GATEWAY_LOG_LEVEL": "warning", "HERD_GATEWAY_DRAIN_TIMEOUT_S": "2"}


@dataclass(slots=True)
class Process:
    """One process that is to run; `module` is its main program."""

    name: str
    module: str
    variables: dict[str, str]
    log: Path
    port: int = 0
    is_frozen: bool = False
    num_starts: int = 0
    child: "subprocess.Popen[bytes]" = field(init=False)

    def start(self) -> None:
        """Start it; what it says goes to its log."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HERD_", "OTEL_"))}
        self.is_frozen = False
        self.num_starts += 1
        with self.log.open("ab") as sink:
            command = [sys.executable, "-m", self.module]
            self.child = spawn(command, env={**kept, **self.variables}, stdout=sink, stderr=sink)

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.child.poll() is None


@dataclass(frozen=True, slots=True)
class LiveWorker:
    """A worker that is ready, as its last beat tells it."""

    process: Process
    worker_id: str
    engine_pid: int
    serving_pid: int
    num_slots: int
    num_running: int


class Herd:
    """Everything that runs. Only `keep` starts processes again."""

    def __init__(self, folder: Path, num_workers: int, num_gateways: int, ports: list[int]) -> None:
        """Args: folder: has a short path; holds Redis' files and the logs."""
        self.server: RunningServer = start_valkey(folder)
        self.broker = Broker.connect(self.server.url)
        worker = {"HERD_WORKER_REDIS_URL": self.server.url, **WORKER_VARIABLES}
        self.workers = [
            Process(f"worker-{number}", "worker", worker, folder / f"worker-{number}.log")
            for number in range(num_workers)
        ]
        self.gateways = [
            Process(
                f"gateway-{number}",
                "service",
                {
                    "HERD_GATEWAY_REDIS_URL": self.server.url,
                    "HERD_GATEWAY_PORT": str(ports[number]),
                    **GATEWAY_VARIABLES,
                },
                folder / f"gateway-{number}.log",
                ports[number],
            )
            for number in range(num_gateways)
        ]
        self.channels = [
            grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}", options=CHANNEL_OPTIONS) for gateway in self.gateways
        ]
        for process in self.processes:
            process.start()

    @property
    def processes(self) -> list[Process]:
        """Workers and gateways."""
        return [*self.workers, *self.gateways]

    async def keep(self) -> None:
        """Start again whatever ends, at once, for ever."""
        while True:
            for process in self.processes:
                if not process.is_running:
                    process.start()
            await asyncio.sleep(KEEP_S)

    async def live_workers(self) -> list[LiveWorker]:
        """Workers that are ready and not frozen; none while Redis does not answer."""
        try:
            beats = await self.broker.pool()
        except BrokerDown:
            return []
        by_pid = {process.child.pid: process for process in self.workers if not process.is_frozen}
        return [worker for beat in beats if (worker := _live_worker(beat, by_pid)) is not None]

    async def is_whole(self) -> bool:
        """Whether every worker is ready and every gateway takes calls."""
        workers = await self.live_workers()
        return len(workers) == len(self.workers) and await self.gateways_serve()

    async def gateways_serve(self) -> bool:
        """Whether every gateway answers, and has seen a live worker."""
        return all([await _serves(channel) for channel in self.channels])

    async def close(self) -> None:
        """End everything."""
        await self.broker.close()
        for channel in self.channels:
            await channel.close()
        for process in self.processes:
            process.child.send_signal(signal.SIGCONT)
            process.child.kill()
            process.child.wait()
        self.server.kill()


def _live_worker(beat: WorkerBeat, by_pid: dict[int, Process]) -> LiveWorker | None:
    process = by_pid.get(int(beat.fields.get("supervisor_pid", 0)))
    if process is None or beat.fields["state"] != "ready" or not is_alive(int(beat.fields["pid"])):
        return None
    numbers = (int(beat.fields[name]) for name in ("pid", "serving_pid", "slots", "running"))
    return LiveWorker(process, beat.worker_id, *numbers)


async def _serves(channel: grpc.aio.Channel) -> bool:
    try:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=HEALTH_S)
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@contextmanager
def reserved_ports(count: int) -> Iterator[list[int]]:
    """Free ports, held by sockets that never listen; gateways bind them again with SO_REUSEPORT."""
    holders = [socket.socket() for _ in range(count)]
    try:
        for holder in holders:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind(("127.0.0.1", 0))
        yield [holder.getsockname()[1] for holder in holders]
    finally:
        for holder in holders:
            holder.close()
