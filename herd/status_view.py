"""What `herd status` tells: rows for machines, and tables for people."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from contract.broker import GatewayBeat, Weakness, WorkerBeat

LATE_S = 1.5  # a process beats five times a second
STYLES = {"serving": "green", "ready": "green", "loading": "yellow", "draining": "yellow", "no worker": "red"}


@dataclass(frozen=True, slots=True)
class GatewayRow:
    """One gateway, in its own words, and how long ago it said them."""

    gateway_id: str
    state: str
    address: str
    host: str
    pid: int
    streams: int
    last_beat_s: float

    @classmethod
    def of(cls, beat: GatewayBeat, now_ms: int) -> Self:
        """From its beat."""
        said = beat.fields
        return cls(
            *(beat.gateway_id, said.get("state", ""), said.get("address", ""), said.get("host", "")),
            *(int(said.get("pid", 0)), int(said.get("streams", 0)), _age_s(beat.at_ms, now_ms)),
        )


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One worker, in its own words, and how long ago it said them.

    Attributes:
        progress: how much of the model is loaded, 0 to 1.
        running, slots: generations that it holds, and could.
        sequences: those in its KV cache; a generation of several choices is several.
        tokens, attempts: since it started.
    """

    worker_id: str
    model: str
    state: str
    progress: float
    host: str
    pid: int
    device: str
    quantization: str
    running: int
    slots: int
    sequences: int
    kv_blocks_used: int
    kv_blocks: int
    tokens_per_s: float
    tokens: int
    attempts: int
    last_beat_s: float

    @classmethod
    def of(cls, beat: WorkerBeat, now_ms: int) -> Self:
        """From its beat; what a worker of an earlier version does not say is 0."""
        said = beat.fields

        def number(name: str) -> int:
            return int(said.get(name, 0))

        return cls(
            worker_id=beat.worker_id,
            model=said.get("model", ""),
            state=said.get("state", ""),
            progress=float(said.get("progress", 0)),
            host=said.get("host", ""),
            pid=number("pid"),
            device=said.get("device", ""),
            quantization=said.get("quantization", ""),
            running=number("running"),
            slots=number("slots"),
            sequences=number("sequences"),
            kv_blocks_used=number("kv_blocks_used"),
            kv_blocks=number("kv_blocks"),
            tokens_per_s=float(said.get("tokens_per_s", 0)),
            tokens=number("tokens"),
            attempts=number("attempts"),
            last_beat_s=_age_s(beat.at_ms, now_ms),
        )


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One model's jobs of one class.

    Attributes:
        waiting, held: jobs that no worker has, and that workers have.
        drained_per_s: jobs that went to a worker, measured.
        estimated_wait_s: of a job that came now; None: nothing drains.
    """

    model: str
    job_class: str
    waiting: int
    held: int
    drained_per_s: float
    estimated_wait_s: float | None


@dataclass(frozen=True, slots=True)
class Status:
    """One look at the pool."""

    gateways: Sequence[GatewayRow]
    workers: Sequence[WorkerRow]
    queues: Sequence[QueueRow]
    dead_letters: int
    redis_weaknesses: Sequence[Weakness]


def view(status: Status) -> RenderableType:
    """All of it, as tables."""
    parts: list[RenderableType] = [_gateways(status.gateways), Text(), _workers(status.workers), Text()]
    parts += [_queues(status.queues), Text()]
    dead = f"{status.dead_letters} jobs were set aside"
    if status.dead_letters:
        dead += "; `herd dead list` says which, and why"
    parts += [Text(f"Redis breaks a promise: {each.text}", style="red") for each in status.redis_weaknesses]
    return Group(*parts, Text(dead, style="red" if status.dead_letters else "dim"))


def _gateways(rows: Sequence[GatewayRow]) -> RenderableType:
    if not rows:
        return Text("no gateway", style="red")
    table = _table(("gateway", "state", "process"), ("streams", "last beat"))
    for row in rows:
        process = f"{row.host} {row.pid}"
        table.add_row(row.address, _state(row.state, row.last_beat_s), process, str(row.streams), _age(row.last_beat_s))
    return table


def _workers(rows: Sequence[WorkerRow]) -> RenderableType:
    if not rows:
        return Text("no worker", style="red")
    table = _table(
        ("worker", "model", "state", "device", "process"),
        ("running", "sequences", "KV", "tokens/s", "tokens", "attempts", "last beat"),
    )
    for row in rows:
        state = f"{row.state} {row.progress:.0%}" if row.state == "loading" else row.state
        table.add_row(
            *(row.worker_id[:8], row.model, _state(state, row.last_beat_s)),
            *(f"{row.device} {row.quantization}".strip(), f"{row.host} {row.pid}"),
            *(f"{row.running}/{row.slots}", str(row.sequences), _share(row.kv_blocks_used, row.kv_blocks)),
            *(f"{row.tokens_per_s:,.0f}", f"{row.tokens:,}", str(row.attempts), _age(row.last_beat_s)),
        )
    return table


def _queues(rows: Sequence[QueueRow]) -> RenderableType:
    if not rows:
        return Text("no queue: no model is announced")
    table = _table(("queue", "class"), ("waiting", "held", "drained/s", "wait"))
    for row in rows:
        wait = "nothing drains" if row.estimated_wait_s is None else f"{row.estimated_wait_s:.1f} s"
        waiting = Text(str(row.waiting), style="yellow" if row.waiting else "")
        table.add_row(row.model, row.job_class, waiting, str(row.held), f"{row.drained_per_s:.1f}", wait)
    return table


def _table(words: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in words:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _state(state: str, last_beat_s: float) -> Text:
    """What it said last; a process that says nothing any more may be dead."""
    if last_beat_s > LATE_S:
        return Text(f"silent ({state})", style="red")
    return Text(state, style=STYLES.get(state.split(" ")[0], STYLES.get(state, "")))


def _share(used: int, total: int) -> str:
    return f"{used / total:.0%} of {total:,}" if total else "-"


def _age(seconds: float) -> str:
    return f"{seconds:.1f} s"


def _age_s(at_ms: int, now_ms: int) -> float:
    return max(0, now_ms - at_ms) / 1000
