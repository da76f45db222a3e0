"""`herd up`: a whole herd on one machine, from one command; nothing of it outlives the command."""

import asyncio
import json
import math
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from contract.broker import Broker, ServerUnfit
from contract.errors import BrokerDown
from herd.children import Child, ChildFailed
from herd.machine import all_serve, answers, check_redis, reserved_port, run_folder, visible_gpus
from herd.show_error import complain
from herd.valkey import NoServerBinary, server_command
from service.settings import GatewaySettings
from telemetry.environment import read

DEMO_MODEL = Path(__file__).resolve().parent / "demo_model"
DRAIN_S = 20.0
MAX_RESTARTS = 5  # of a child that has served, within a minute


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What `herd up` was asked for; the command line documents each."""

    models: tuple[Path, ...]  # none: the demo model
    model_names: tuple[str, ...]  # none, or one for each model
    quantization: str
    workers: int
    gateways: int
    device: str
    chat_format: str
    host: str
    port: int
    insecure: bool
    metrics_port: int  # the first gateway's; the others' and the workers' follow it; 0 leaves it to the environment
    redis_url: str | None
    state_dir: Path | None
    ready_file: Path | None
    verbose: bool


def run_up(options: UpOptions) -> int:
    """Run until SIGINT or SIGTERM; the exit status."""
    try:
        herd = _Herd(options, models_of(options), _gateway_settings(options), Console(stderr=True))
    except ValueError as error:
        complain("up", error)
        return 2
    try:
        return asyncio.run(herd.run())
    except (ChildFailed, NoServerBinary, ServerUnfit, BrokerDown, OSError) as error:
        complain("up", error)
    except BaseExceptionGroup as group:
        for each in group.exceptions:
            complain("up", each)
    return 1


@dataclass(frozen=True, slots=True)
class UpModel:
    """One model to serve: its folder, and its name in the API."""

    folder: Path
    name: str

    def quantization(self, wanted: str) -> str:
        """What its workers are told: an unquantized folder is served in int8 unless asked otherwise."""
        if wanted != "auto":
            return wanted
        saved = "quantization_config" in json.loads((self.folder / "config.json").read_text())
        return "auto" if saved else "int8"


def models_of(options: UpOptions) -> tuple[UpModel, ...]:
    """The models that are asked for. Raises ValueError if a folder holds none, or names and folders do not match."""
    folders = tuple(folder.resolve() for folder in options.models) or (DEMO_MODEL,)
    for folder in folders:
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} is no model folder: it has no config.json")
    names = options.model_names or tuple("demo" if folder == DEMO_MODEL else folder.name for folder in folders)
    if len(names) != len(folders):
        raise ValueError(f"{len(names)} names for {len(folders)} models: --model-name goes with each --model or none")
    if len(set(names)) != len(names):
        raise ValueError(f"two models are called {max(names, key=names.count)!r}: give each a --model-name")
    return tuple(UpModel(folder, name) for folder, name in zip(folders, names, strict=True))


def _gateway_settings(options: UpOptions) -> GatewaySettings:
    """What the gateway will be told. Raises WrongSettings, a ValueError."""
    given = {"host": options.host, "port": options.port} | ({"insecure": True} if options.insecure else {})
    return read(GatewaySettings, os.environ, **given)


class _Herd:
    """The processes of one `herd up` and the folder they share."""

    def __init__(
        self, options: UpOptions, models: tuple[UpModel, ...], gateway: GatewaySettings, console: Console
    ) -> None:
        self.options = options
        self.models = models
        self.gateway = gateway
        self.console = console

    async def run(self) -> int:
        """Start, serve, stop: in that order, whatever happens."""
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        with ExitStack() as stack:
            run_dir = stack.enter_context(run_folder())
            port = stack.enter_context(reserved_port(self.options.host, self.options.port))
            children: list[Child] = []
            try:
                await self._serve(run_dir, port, children, stop)
            finally:
                for child in reversed(children):  # workers first, then the gateway, the broker last
                    await child.stop(DRAIN_S)
        return 0

    async def _serve(self, run_dir: Path, port: int, children: list[Child], stop: asyncio.Event) -> None:
        """Start every child, wait until all serve, then keep them until `stop`."""
        redis_url = self.options.redis_url
        if redis_url is None:
            redis_url = await self._start_valkey(run_dir, children)
        else:
            await check_redis(redis_url)
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
        while not await answers(path):
            if valkey.process is None or valkey.process.returncode is not None:
                raise ChildFailed("valkey", valkey.process.returncode if valkey.process else None, valkey.log)
            await asyncio.sleep(0.02)
        return f"unix://{path}"

    def _own_children(self, run_dir: Path, port: int, redis_url: str) -> Iterator[Child]:
        """The gateways and the workers, not yet started."""
        options = self.options
        gateway = {
            "HERD_GATEWAY_REDIS_URL": redis_url,
            "HERD_GATEWAY_HOST": options.host,
            "HERD_GATEWAY_PORT": str(port),
        }
        if options.insecure:
            gateway["HERD_GATEWAY_INSECURE"] = "true"
        for number in range(options.gateways):
            mine = {"HERD_GATEWAY_METRICS_PORT": str(options.metrics_port + number)} if options.metrics_port else {}
            name = "gateway" if options.gateways == 1 else f"gateway-{number}"
            yield self._python(name, "service", gateway | mine, run_dir)
        gpus = visible_gpus() if options.device in ("auto", "cuda") else []
        # Beside each engine stand its supervisor, a gateway and a broker; an engine that waits for a core waits long.
        workers = [model for model in self.models for _ in range(options.workers)]
        threads = max(1, (os.cpu_count() or 1) // (2 * len(workers)))
        for number, model in enumerate(workers):
            worker = {
                "HERD_WORKER_REDIS_URL": redis_url,
                "HERD_WORKER_MODEL_PATH": str(model.folder),
                "HERD_WORKER_MODEL_NAME": model.name,
                "HERD_WORKER_QUANTIZATION": model.quantization(options.quantization),
                "HERD_WORKER_THREADS": str(threads),
                "HERD_WORKER_DEVICE": options.device,
                # Each fills what it may: two on one GPU halve it.
                "HERD_WORKER_GPU_SHARE": str(1 / math.ceil(len(workers) / max(len(gpus), 1))),
                "HERD_WORKER_CHAT_FORMAT": options.chat_format,
            }
            if options.metrics_port:
                worker["HERD_WORKER_METRICS_PORT"] = str(options.metrics_port + options.gateways + number)
            if len(gpus) > 1:
                worker["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
            yield self._python(f"worker-{number}", "worker", worker, run_dir)

    def _python(self, name: str, module: str, env: dict[str, str], run_dir: Path) -> Child:
        command = [sys.executable, "-m", module]
        return Child(name, command, {**os.environ, **env}, run_dir / f"{name}.log", self.options.verbose)

    async def _announce(self, redis_url: str, port: int, children: list[Child]) -> None:
        """Show progress until every worker is ready and the gateway listens; then say how to call it."""
        broker = Broker.connect(redis_url)
        gateway = self.gateway.model_copy(update={"port": port})
        try:
            await self._wait_ready(broker, gateway)
        finally:
            await broker.close()
        for child in children:
            child.max_restarts = MAX_RESTARTS  # until now a death was one that a restart does not mend
        self._print_how_to_call(gateway.address, redis_url)
        if self.options.ready_file:
            pids = {child.name: child.process.pid for child in children if child.process}
            names = [model.name for model in self.models]
            ready = {
                "address": gateway.address,
                "redis_url": redis_url,
                "model": names[0],
                "models": names,
                "pids": pids,
            }
            partial = self.options.ready_file.with_suffix(".partial")
            partial.write_text(json.dumps(ready))
            partial.replace(self.options.ready_file)  # a reader sees all of it or nothing

    async def _wait_ready(self, broker: Broker, gateway: GatewaySettings) -> None:
        """Return once every worker is ready and each gateway serves every model."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        names = [model.name for model in self.models]
        num_workers = len(names) * self.options.workers
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(f"loading {', '.join(names)}", total=float(num_workers))
            while True:
                pool = [w.fields for w in await broker.pool() if w.fields.get("model") in names]
                ready = Counter(fields["model"] for fields in pool if fields.get("state") == "ready")
                done = sum(float(fields.get("progress", 0)) for fields in pool)
                progress.update(task, completed=min(done, float(num_workers)))
                is_loaded = all(ready[name] >= self.options.workers for name in names)
                if is_loaded and await asyncio.to_thread(all_serve, gateway, names, self.options.gateways):
                    return
                await asyncio.sleep(0.05)

    def _print_how_to_call(self, address: str, redis_url: str) -> None:
        at = "" if address == "127.0.0.1:50051" else f" --address {address}"
        if self.gateway.has_tls:
            at += f" --ca {self.gateway.tls_cert}"
        out = self.console
        names = " and ".join(f"[bold]{model.name}[/]" for model in self.models)
        verb = "is" if len(self.models) == 1 else "are"
        out.print(f"{names} {verb} served at [bold]{address}[/] (gRPC, llamaherd.v1). Ctrl-C ends it.")
        for model in self.models:
            of = "" if len(self.models) == 1 else f" --model {model.name}"
            out.print(f'  herd generate "Count to ten"{of}{at}', highlight=False, soft_wrap=True)
            questions = model.folder / "questions.txt"
            if questions.is_file():
                out.print("Worth asking:")
                for line in questions.read_text().splitlines()[:3]:
                    out.print(f'  herd generate "{line}"{of}{at}', highlight=False, soft_wrap=True)
        out.print(f"  herd status --redis-url {redis_url}", highlight=False, soft_wrap=True)
