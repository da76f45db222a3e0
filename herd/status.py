"""`herd status`: the pool at a glance, from Redis itself, so that it also tells when no gateway answers."""

import asyncio
import json
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.live import Live
from rich.text import Text

from contract.broker import Broker, QueueDepth, ServerUnfit
from contract.connection import without_password
from contract.errors import BrokerDown
from contract.keys import CLASSES
from herd.complain import complain
from herd.status_view import GatewayRow, QueueRow, Status, WorkerRow, view

LOOK_S = 1.0
RATE_WINDOW_S = 15.0
WIDTH = 160  # where no terminal says how wide it is


@dataclass(frozen=True, slots=True)
class StatusOptions:
    """What `herd status` was asked for; the command line documents each."""

    redis_url: str
    as_json: bool
    once: bool


def run_status(options: StatusOptions) -> int:
    """Show the pool; the exit status: 1 if Redis does not answer. An interrupt ends looking, with 0."""
    try:
        return asyncio.run(_show(options))
    except ServerUnfit as error:
        complain("status", error)
        return 1
    except KeyboardInterrupt:
        return 0


class Drain:
    """How fast each queue is worked off, measured over the looks of the last RATE_WINDOW_S."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, Mapping[tuple[str, str], QueueDepth]]] = deque()

    def add(self, depths: Mapping[tuple[str, str], QueueDepth], now_s: float) -> None:
        """One more look."""
        self._looks.append((now_s, depths))
        while now_s - self._looks[0][0] > RATE_WINDOW_S:
            self._looks.popleft()

    def row(self, model: str, job_class: str) -> QueueRow:
        """The queue as of the last look."""
        at = (model, job_class)
        (first_s, first), (last_s, last) = self._looks[0], self._looks[-1]
        depth, before = last[at], first.get(at, last[at])
        per_s = max(0, depth.num_delivered - before.num_delivered) / (last_s - first_s) if last_s > first_s else 0.0
        wait_s = 0.0 if not depth.num_waiting else depth.num_waiting / per_s if per_s else None
        return QueueRow(model, job_class, depth.num_waiting, depth.num_held, round(per_s, 2), wait_s)


async def look(broker: Broker, drain: Drain) -> Status:
    """Ask once. Raises BrokerDown."""
    workers, gateways = await broker.pool(), await broker.gateways()
    names = {*await broker.models(), *(each.fields.get("model", "") for each in workers)} - {""}
    drain.add(await broker.queue_depths(sorted(names)), time.monotonic())
    now_ms = await broker.now_ms()
    return Status(
        gateways=tuple(GatewayRow.of(each, now_ms) for each in gateways),
        workers=tuple(sorted((WorkerRow.of(each, now_ms) for each in workers), key=lambda row: (row.model, row.host))),
        queues=tuple(drain.row(model, job_class) for model in sorted(names) for job_class in CLASSES),
        dead_letters=await broker.dead.count(),
        redis_weaknesses=await broker.find_weaknesses(),
    )


async def _show(options: StatusOptions) -> int:
    broker = Broker.connect(options.redis_url)
    console = Console(highlight=False)
    try:
        if options.as_json or options.once or not console.is_terminal:
            return await _show_once(broker, options)
        await _watch(broker, console, options)
    finally:
        await broker.close()
    return 0


async def _show_once(broker: Broker, options: StatusOptions) -> int:
    """Two looks: rates are what happened between them."""
    drain = Drain()
    try:
        await look(broker, drain)
        await asyncio.sleep(LOOK_S)
        status = await look(broker, drain)
    except BrokerDown:
        told = "--redis-url is the one that the gateways are told; `herd up` prints its own"
        complain("status", f"{_no_redis(options)}; {told}")
        return 1
    if options.as_json:
        print(json.dumps(asdict(status)), flush=True)
    else:
        Console(highlight=False, width=WIDTH).print(view(status))
    return 0


def _no_redis(options: StatusOptions) -> str:
    return f"no Redis answers at {without_password(options.redis_url)}"


async def _watch(broker: Broker, console: Console, options: StatusOptions) -> None:
    """Look again and again until interrupted. A Redis that does not answer may come back."""
    drain = Drain()
    with Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            try:
                live.update(view(await look(broker, drain)), refresh=True)
            except BrokerDown:
                live.update(Text(_no_redis(options), style="red"), refresh=True)
            await asyncio.sleep(LOOK_S)
