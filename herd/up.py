"""`herd up`: a whole herd on one machine, from one command; nothing of it outlives the command.

A worker takes seconds to load torch: so little is imported before it runs, and the rest (herd.announce) meanwhile.
"""

import asyncio
import json
import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from contract.errors import BrokerDown, ServerUnfit
from herd.children import Child, ChildFailed
from herd.complain import complain
from herd.machine import reserved_port, run_folder, until_answers, visible_gpus
from herd.valkey import NoServerBinary, server_command
from service.settings import GatewaySettings
from telemetry.environment import read

if TYPE_CHECKING:
    from herd.announce import Announcement

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
        herd = _Herd(options, models_of(options), _gateway_settings(options))
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

    def __init__(self, options: UpOptions, models: tuple[UpModel, ...], gateway: GatewaySettings) -> None:
        self.options = options
        self.models = models
        self.gateway = gateway

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
        """Start every child at once, wait until all serve, then keep them until `stop`."""
        for child in await self._all_children(run_dir, port):
            await child.start()
            children.append(child)
        from herd.announce import Announcement

        redis_url = self.options.redis_url or _private_url(run_dir)
        gateway = self.gateway.model_copy(update={"port": port})
        announcement = Announcement(gateway, {model.name: model.folder for model in self.models}, redis_url)
        async with asyncio.TaskGroup() as group:
            keepers = [group.create_task(child.keep(), name=child.name) for child in children]
            ready = group.create_task(self._announce(announcement, run_dir, children))
            await stop.wait()
            for task in (ready, *keepers):
                task.cancel()

    async def _all_children(self, run_dir: Path, port: int) -> list[Child]:
        """Not yet started, in the order to start them: each waits by itself for those before it.

        Raises ServerUnfit for a Redis of the caller's that cannot be used.
        """
        if self.options.redis_url is not None:
            from herd.announce import check_redis

            await check_redis(self.options.redis_url)
            return list(self._own_children(run_dir, port, self.options.redis_url))
        data_dir = self.options.state_dir or run_dir / "valkey"
        data_dir.mkdir(parents=True, exist_ok=True)
        command = server_command(_socket_in(run_dir), data_dir.resolve())
        valkey = Child("valkey", command, os.environ, run_dir / "valkey.log", self.options.verbose)
        return [valkey, *self._own_children(run_dir, port, _private_url(run_dir))]

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

    async def _announce(self, announcement: "Announcement", run_dir: Path, children: list[Child]) -> None:
        """Show progress until every worker is ready and each gateway serves; then say how to call it."""
        if self.options.redis_url is None:
            await until_answers(_socket_in(run_dir))
        await announcement.wait_ready(self.options.workers, self.options.gateways)
        for child in children:
            child.max_restarts = MAX_RESTARTS  # until now a death was one that a restart does not mend
        announcement.print_how_to_call()
        if self.options.ready_file:
            pids = {child.name: child.process.pid for child in children if child.process}
            names = [model.name for model in self.models]
            ready = {
                "address": announcement.address,
                "redis_url": announcement.redis_url,
                "model": names[0],
                "models": names,
                "pids": pids,
            }
            partial = self.options.ready_file.with_suffix(".partial")
            partial.write_text(json.dumps(ready))
            partial.replace(self.options.ready_file)  # a reader sees all of it or nothing


def _socket_in(run_dir: Path) -> Path:
    """Where the private broker listens."""
    return run_dir / "v.sock"


def _private_url(run_dir: Path) -> str:
    return f"unix://{_socket_in(run_dir)}"
