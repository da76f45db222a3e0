"""Tells when all of a `herd up` serves, and how to call it. Imported late: while this loads, so do the processes."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from contract.broker import Broker
from contract.connection import without_password
from contract.errors import BrokerDown, ServerUnfit
from service.health import model_service
from service.probe import ask
from service.settings import GatewaySettings

LOOK_S = 0.05
MAX_LOOKS_AT_ONCE = 8


async def check_redis(url: str) -> None:
    """Raises ServerUnfit if the herd cannot live there, or nobody answers."""
    broker = Broker.connect(url)
    try:
        await broker.check_server()
    except BrokerDown:
        raise ServerUnfit(f"no Redis answers at {without_password(url)}") from None
    finally:
        await broker.close()


class Announcement:
    """What is shown of one herd.

    Attributes:
        address: the gateways', as callers name it.
        redis_url: of its Redis.

    Args:
        gateway: settings of each gateway, with the port that they share.
        folders: of each model, by its name in the API.
    """

    def __init__(self, gateway: GatewaySettings, folders: Mapping[str, Path], redis_url: str) -> None:
        self.address = gateway.address
        self.redis_url = redis_url
        self._gateway = gateway
        self._folders = folders
        self._console = Console(stderr=True)

    async def wait_ready(self, workers: int, gateways: int) -> None:
        """Show progress until so many workers of each model are ready and each gateway serves every model."""
        broker = Broker.connect(self.redis_url)
        try:
            await self._wait_ready(broker, workers, gateways)
        finally:
            await broker.close()

    async def _wait_ready(self, broker: Broker, workers: int, gateways: int) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        names = list(self._folders)
        num_workers = len(names) * workers
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(f"loading {', '.join(names)}", total=float(num_workers))
            while True:
                pool = [w.fields for w in await broker.pool() if w.fields.get("model") in names]
                ready = Counter(fields["model"] for fields in pool if fields.get("state") == "ready")
                done = sum(float(fields.get("progress", 0)) for fields in pool)
                progress.update(task, completed=min(done, float(num_workers)))
                is_loaded = all(ready[name] >= workers for name in names)
                if is_loaded and await asyncio.to_thread(_all_serve, self._gateway, names, gateways):
                    return
                await asyncio.sleep(LOOK_S)

    def print_how_to_call(self) -> None:
        """One command for each thing worth doing first."""
        at = "" if self.address == "127.0.0.1:50051" else f" --address {self.address}"
        if self._gateway.has_tls:
            at += f" --ca {self._gateway.tls_cert}"
        out = self._console
        names = " and ".join(f"[bold]{name}[/]" for name in self._folders)
        verb = "is" if len(self._folders) == 1 else "are"
        out.print(f"{names} {verb} served at [bold]{self.address}[/] (gRPC, llamaherd.v1). Ctrl-C ends it.")
        for name, folder in self._folders.items():
            of = "" if len(self._folders) == 1 else f" --model {name}"
            out.print(f'  herd generate "Count to ten"{of}{at}', highlight=False, soft_wrap=True)
            questions = folder / "questions.txt"
            if questions.is_file():
                out.print("Worth asking:")
                for line in questions.read_text().splitlines()[:3]:
                    out.print(f'  herd generate "{line}"{of}{at}', highlight=False, soft_wrap=True)
        out.print(f"  herd status --redis-url {self.redis_url}", highlight=False, soft_wrap=True)


def _all_serve(gateway: GatewaySettings, models: Sequence[str], num_gateways: int) -> bool:
    """Whether all gateways on one port serve these models.

    The kernel deals connections out, so many new ones in a row have to meet one that does: with two gateways a
    straggler escapes 13 of them once in 8,000 times.
    """
    num_looks = 12 * num_gateways - 11
    with ThreadPoolExecutor(MAX_LOOKS_AT_ONCE) as threads:
        return _serves(gateway, models) and all(threads.map(lambda _: _serves(gateway, models), range(num_looks - 1)))


def _serves(gateway: GatewaySettings, models: Sequence[str]) -> bool:
    """Whether the gateway says that it serves these models: it listens, and has seen a worker of each."""
    try:
        return all(ask(gateway, model_service(name)) == health_pb2.HealthCheckResponse.SERVING for name in models)
    except (grpc.RpcError, OSError):
        return False
