"""`herd up`: a whole herd on one machine, from one command; nothing of it outlives the command."""

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from contract.broker import Broker
from contract.errors import ServeError
from herd.children import Child, ChildFailed
from herd.valkey import NoServerBinary, server_command

DEMO_MODEL = Path(__file__).parent / "demo_model"
DRAIN_S = 20.0


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What `herd up` was asked for; the command line documents each."""

    model: Path | None
    model_name: str | None
    quantization: str
    workers: int
    device: str
    chat_format: str
    host: str
    port: int
    insecure: bool
    redis_url: str | None
    state_dir: Path | None
    ready_file: Path | None
    verbose: bool


def run_up(options: UpOptions) -> int:
    """Run until SIGINT or SIGTERM; the exit status."""
    console = Console(stderr=True)
    try:
        return asyncio.run(_Herd(options, console).run())
    except (ChildFailed, NoServerBinary, ServeError, OSError) as error:
        console.print(f"[red]herd up:[/] {error}", highlight=False)
        return 1
    except BaseExceptionGroup as group:
        for each in group.exceptions:
            console.print(f"[red]herd up:[/] {each}", highlight=False)
        return 1


class _Herd:
    """The processes of one `herd up` and the folder they share."""

    def __init__(self, options: UpOptions, console: Console) -> None:
        self.options = options
        self.console = console
        self.model = (options.model or DEMO_MODEL).resolve()
        self.model_name = options.model_name or ("demo" if options.model is None else self.model.name)

    async def run(self) -> int:
        """Start, serve, stop: in that order, whatever happens."""
        if not (self.model / "config.json").is_file():
            self.console.print(f"[red]herd up:[/] {self.model} is no model folder: it has no config.json")
            return 2
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        with ExitStack() as stack:
            run_dir = stack.enter_context(_run_dir())
            port = stack.enter_context(_reserved_port(self.options.host, self.options.port))
            children: list[Child] = []
            try:
                await self._serve(run_dir, port, children, stop)
            finally:
                for child in reversed(children):  # workers first, then the gateway, the broker last
                    await child.stop(DRAIN_S)
        return 0

    async def _serve(self, run_dir: Path, port: int, children: list[Child], stop: asyncio.Event) -> None:
        """Start every child, wait until all serve, then keep them until `stop`."""
        redis_url = self.options.redis_url or await self._start_valkey(run_dir, children)
        for child in self._own_children(run_dir, port, redis_url):
            await child.start()
            children.append(child)
        async with asyncio.TaskGroup() as group:
            keepers = [group.create_task(child.keep(), name=child.name) for child in children]
            ready = group.create_task(self._announce(redis_url, port, children))
            await stop.wait()
            for task in (ready, *keepers):
                task.cancel()

    async def _start_valkey(self, run_dir: Path, children: list[Child]) -> str:
        """The private broker's URL, once it answers."""
        path = run_dir / "v.sock"
        data_dir = self.options.state_dir or run_dir / "valkey"
        data_dir.mkdir(parents=True, exist_ok=True)
        valkey = Child(
            "valkey", server_command(path, data_dir.resolve()), os.environ, run_dir / "valkey.log", self.options.verbose
        )
        await valkey.start()
        children.append(valkey)
        while not await _answers(path):
            if valkey.process is None or valkey.process.returncode is not None:
                raise ChildFailed("valkey", valkey.process.returncode if valkey.process else None, valkey.log)
            await asyncio.sleep(0.02)
        return f"unix://{path}"

    def _own_children(self, run_dir: Path, port: int, redis_url: str) -> Iterator[Child]:
        """The gateway and the workers, not yet started."""
        options = self.options
        gateway = {
            "HERD_GATEWAY_REDIS_URL": redis_url,
            "HERD_GATEWAY_HOST": options.host,
            "HERD_GATEWAY_PORT": str(port),
            "HERD_GATEWAY_INSECURE": str(options.insecure).lower(),
        }
        yield self._python("gateway", "service", gateway, run_dir)
        gpus = _count_gpus() if options.device in ("auto", "cuda") else 0
        # Beside each engine stand its supervisor, a gateway and a broker; an engine that waits for a core waits long.
        threads = max(1, (os.cpu_count() or 1) // (2 * options.workers))
        for number in range(options.workers):
            worker = {
                "HERD_WORKER_REDIS_URL": redis_url,
                "HERD_WORKER_MODEL_PATH": str(self.model),
                "HERD_WORKER_MODEL_NAME": self.model_name,
                "HERD_WORKER_QUANTIZATION": self._quantization(),
                "HERD_WORKER_THREADS": str(threads),
                "HERD_WORKER_DEVICE": options.device,
                "HERD_WORKER_CHAT_FORMAT": options.chat_format,
            }
            if gpus > 1:
                worker["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
            yield self._python(f"worker-{number}", "worker", worker, run_dir)

    def _quantization(self) -> str:
        """What the workers are told: an unquantized folder is served in int8 unless asked otherwise."""
        if self.options.quantization != "auto":
            return self.options.quantization
        saved = "quantization_config" in json.loads((self.model / "config.json").read_text())
        return "auto" if saved else "int8"

    def _python(self, name: str, module: str, env: dict[str, str], run_dir: Path) -> Child:
        command = [sys.executable, "-m", module]
        return Child(name, command, {**os.environ, **env}, run_dir / f"{name}.log", self.options.verbose)

    async def _announce(self, redis_url: str, port: int, children: list[Child]) -> None:
        """Show progress until every worker is ready and the gateway listens; then say how to call it."""
        broker = Broker.connect(redis_url)
        try:
            await self._wait_ready(broker, port)
        finally:
            await broker.close()
        address = f"{self.options.host}:{port}"
        self._print_how_to_call(address)
        if self.options.ready_file:
            pids = {child.name: child.process.pid for child in children if child.process}
            ready = {"address": address, "redis_url": redis_url, "model": self.model_name, "pids": pids}
            partial = self.options.ready_file.with_suffix(".partial")
            partial.write_text(json.dumps(ready))
            partial.replace(self.options.ready_file)  # a reader sees all of it or nothing

    async def _wait_ready(self, broker: Broker, port: int) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(f"loading {self.model_name}", total=float(self.options.workers))
            while True:
                pool = [w.fields for w in await broker.pool() if w.fields.get("model") == self.model_name]
                ready = sum(fields.get("state") == "ready" for fields in pool)
                done = sum(float(fields.get("progress", 0)) for fields in pool)
                progress.update(task, completed=min(done, float(self.options.workers)))
                if ready >= self.options.workers and await _serves(self.options.host, port):
                    return
                await asyncio.sleep(0.05)

    def _print_how_to_call(self, address: str) -> None:
        at = "" if address == "127.0.0.1:50051" else f" --address {address}"
        out = self.console
        out.print(f"[bold]{self.model_name}[/] is served at [bold]{address}[/] (gRPC, llamaherd.v1). Ctrl-C ends it.")
        out.print(f'  herd generate "Count to ten"{at}', highlight=False)
        questions = self.model / "questions.txt"
        if questions.is_file():
            out.print("Worth asking:")
            for line in questions.read_text().splitlines()[:3]:
                out.print(f'  herd generate "{line}"{at}', highlight=False)


@contextmanager
def _run_dir() -> Iterator[Path]:
    """A private folder with a short path (a unix socket's must stay under 108 bytes), gone at the end."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(tempfile.mkdtemp(prefix="herd-", dir=base if base and os.access(base, os.W_OK) else None))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _reserved_port(host: str, port: int) -> Iterator[int]:
    """Hold `port` (0: a free one) for the gateway, which binds it again with SO_REUSEPORT.

    A bound socket that never listens gets no connections, so this neither races nor steals.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        if port:
            with socket.socket(family, socket.SOCK_STREAM) as probe:  # without SO_REUSEPORT: is it really free?
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
        yield int(holder.getsockname()[1])


async def _answers(path: Path) -> bool:
    """Whether a Redis on this socket answers PING with PONG (it says LOADING while it reads its file)."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(path))
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        async with asyncio.timeout(1):
            return await reader.readline() == b"+PONG\r\n"
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()


async def _serves(host: str, port: int) -> bool:
    """Whether the gateway says that it serves: it listens, and has seen a live worker."""
    async with grpc.aio.insecure_channel(f"{host}:{port}") as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _count_gpus() -> int:
    """NVIDIA GPUs of this machine, by the driver's own listing; torch is not needed for that."""
    listing = Path("/proc/driver/nvidia/gpus")
    return len(list(listing.iterdir())) if listing.is_dir() else 0
