"""`herd dead`: the jobs that were set aside, and why; to look at, to queue again, to forget."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from contract import keys
from contract.broker import Broker, ServerUnfit
from contract.connection import without_password
from contract.dead import DeadJob
from contract.errors import BrokerDown, ServeError
from herd.complain import complain

UNBOUNDED = 1 << 30
KEEP_MS = 600_000  # nobody reads what is queued again, so it runs, and can be read, for at least as long
WIDTH = 160  # where no terminal says how wide it is


@dataclass(frozen=True, slots=True)
class DeadOptions:
    """Which Redis, and which jobs: those of these generations, or all."""

    redis_url: str
    generation_ids: tuple[str, ...] = ()
    all: bool = False


def run_list(options: DeadOptions, *, as_json: bool) -> int:
    """Show every one; the exit status."""

    async def show(broker: Broker) -> int:
        found, now_ms = await broker.dead.all(), await broker.now_ms()
        if as_json:
            print(json.dumps([_as_json(each) for each in found]))
        elif not found:
            print("no job was set aside")
        else:
            console = Console(highlight=False)
            (console if console.is_terminal else Console(highlight=False, width=WIDTH)).print(_table(found, now_ms))
        return 0

    return _run(options, "list", show)


def run_retry(options: DeadOptions) -> int:
    """Queue each anew under an id of its own, and take it off the list; the exit status: 1 if one could not be."""

    async def retry(broker: Broker) -> int:
        chosen, status = await _chosen(broker, options)
        for each in chosen:
            if each.record is None:
                complain(
                    "dead retry",
                    f"{each.generation_id}: its prompt is no longer kept, or unreadable; its caller has to ask again",
                )
                status = 1
                continue
            job = replace(each.record.job, generation_id=keys.new_generation_id())
            await broker.submit(
                job,
                caller=each.record.caller,
                digest="",
                gateway_id="",
                window_ms=max(each.record.window_ms, KEEP_MS),
                max_waiting=UNBOUNDED,
            )
            await broker.dead.forget([each.entry_id])
            print(f"{each.generation_id} is queued again as {job.generation_id}", flush=True)
        return status

    return _run(options, "retry", retry)


def run_drop(options: DeadOptions) -> int:
    """Take them off the list; the exit status: 1 if one was not on it."""

    async def drop(broker: Broker) -> int:
        chosen, status = await _chosen(broker, options)
        print(f"{await broker.dead.forget([each.entry_id for each in chosen])} jobs forgotten")
        return status

    return _run(options, "drop", drop)


def _run(options: DeadOptions, command: str, act: Callable[[Broker], Awaitable[int]]) -> int:
    async def run() -> int:
        broker = Broker.connect(options.redis_url)
        try:
            return await act(broker)
        finally:
            await broker.close()

    try:
        return asyncio.run(run())
    except BrokerDown:
        complain(f"dead {command}", f"no Redis answers at {without_password(options.redis_url)}")
    except (ServeError, ServerUnfit) as error:
        complain(f"dead {command}", error)
    return 1


async def _chosen(broker: Broker, options: DeadOptions) -> tuple[Sequence[DeadJob], int]:
    """Those asked for, and the status: 1 if one of them is not on the list."""
    found = await broker.dead.all()
    if options.all:
        return found, 0
    missing = set(options.generation_ids) - {each.generation_id for each in found}
    for generation_id in sorted(missing):
        print(f"herd dead: {generation_id} is not among the jobs set aside", file=sys.stderr)
    return [each for each in found if each.generation_id in options.generation_ids], int(bool(missing))


def _as_json(job: DeadJob) -> dict[str, object]:
    """Never the prompt."""
    record = job.record
    return {
        "generation_id": job.generation_id,
        "set_aside_ms": job.at_ms,
        "attempts": job.attempts,
        "why": job.why,
        "model": record.job.model if record else None,
        "job_class": record.job.job_class if record else None,
        "prompt_tokens": len(record.job.prompt_ids) if record else None,
        "tokens": record.num_tokens if record else None,
        "expires_in_s": record.expires_in_ms / 1000 if record else None,
    }


def _table(found: Sequence[DeadJob], now_ms: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("generation", "model", "class"):
        table.add_column(name, no_wrap=True)
    for name in ("set aside", "attempts", "prompt", "made", "can be retried for"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("why")
    for each in found:
        age, record = f"{(now_ms - each.at_ms) / 1000:,.0f} s ago", each.record
        if record is None:
            table.add_row(each.generation_id, "", "", age, str(each.attempts), "", "", "no longer", each.why)
            continue
        table.add_row(
            *(each.generation_id, record.job.model, record.job.job_class, age, str(each.attempts)),
            *(str(len(record.job.prompt_ids)), str(record.num_tokens), f"{record.expires_in_ms / 1000:,.0f} s"),
            each.why,
        )
    return table
