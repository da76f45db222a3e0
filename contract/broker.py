"""The Redis protocol as typed calls: each method is one script or one command of the table in ARCHITECTURE.md.

Every write is a script that is idempotent under retry, so a caller may repeat any call whose reply was lost.
Errors of the connection come out as BrokerDown.
"""

import secrets
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Self

from redis.exceptions import ResponseError

from contract import connection, keys, parsing
from contract.announced import is_announced, read_bundle, read_models
from contract.beats import read_beats
from contract.chat import ChatStore
from contract.connection import Client, answered, read_stream
from contract.dead import DeadLetters
from contract.errors import Overloaded, QuotaExceeded, RequestIdReused, ServerUnfit, UnknownGeneration
from contract.log_entries import parse_inbox_row, parse_log_entry
from contract.log_pages import LogPage, LogPlace, read_ending, read_page
from contract.messages import Ending, EndReason, Job, LogEntry, MalformedMessage, TokenRow, encode_choice_ends
from contract.outcomes import (
    Delivered,
    GatewayBeat,
    InboxRow,
    NotTaken,
    QueueDepth,
    Record,
    RowOutcome,
    RowReply,
    Standing,
    State,
    StepRow,
    Submitted,
    Taken,
    WorkerBeat,
)
from contract.parsing import readable
from contract.scripts import run_script
from contract.server_check import Weakness, check_server, find_weaknesses
from contract.standings import read_leases, read_standings

__all__ = [
    "Broker",
    "Delivered",
    "GatewayBeat",
    "InboxRow",
    "NotTaken",
    "QueueDepth",
    "Record",
    "RowOutcome",
    "RowReply",
    "ServerUnfit",
    "Standing",
    "State",
    "StepRow",
    "Submitted",
    "Taken",
    "Weakness",
    "WorkerBeat",
    "new_lease",
]

MAX_CRASHES = 3  # a generation that ended this many workers, one after another without new tokens, is poison
PROVEN_TOKENS = 4  # new ones; an attempt that has logged them clears its generation of earlier crashes (step.lua)
MAX_DEATHS = 32  # and one that ended as many in all, whatever it made meanwhile
SLACK_MS = 900_000  # a record outlives its deadline and window by this, so that it is closed, not forgotten
GRACE_MS = 2_000  # past a deadline or a cancel, before anybody may close in the owner's place
UNBOUNDED = 2**53  # what a script still counts exactly
MODEL_TTL_MS = 7 * 24 * 3_600_000


def new_lease() -> str:
    """A random 64-bit value: compared for equality, never ordered."""
    return secrets.token_hex(8)


def _blocking(block_ms: int) -> tuple[Any, ...]:
    return ("BLOCK", block_ms) if block_ms else ()


class Broker:
    """One process' door to Redis. All calls may be made concurrently."""

    def __init__(self, client: Client) -> None:
        self._client: Any = client  # redis-py's own types do not tell sync from async replies

    @classmethod
    def connect(cls, url: str) -> Self:
        """A broker at redis://, rediss://, unix:///path or redis+cluster://host:port; connects when first used."""
        return cls(connection.connect(url))

    @property
    def chat(self) -> ChatStore:
        """Conversations."""
        return ChatStore(self._client)

    @property
    def dead(self) -> DeadLetters:
        """Jobs that were set aside."""
        return DeadLetters(self._client)

    async def close(self) -> None:
        """Give every connection back."""
        await self._client.aclose()

    async def check_server(self) -> None:
        """Refuse a server that would lose tokens, or a herd of another shape. Raises ServerUnfit, BrokerDown."""
        await check_server(self._client)

    async def find_weaknesses(self) -> tuple[Weakness, ...]:
        """What makes this Redis break a promise while it answers. Raises BrokerDown."""
        return await find_weaknesses(self._client)

    async def now_ms(self) -> int:
        """Redis' clock, by which all stored times are."""
        return int(await self._run("now", [keys.META], []))

    # --- gateway ---------------------------------------------------------------------------------------------------

    async def submit(
        self,
        job: Job,
        *,
        caller: str,
        digest: str,
        gateway_id: str,
        window_ms: int,
        max_waiting: int,
        max_waiting_tokens: int = UNBOUNDED,
        max_held: int = UNBOUNDED,
    ) -> Submitted:
        """Queue a generation, or attach to the one that stands under its id. With gateway_id '' nobody reads it yet.

        Args:
            max_waiting: jobs of the model and class that may wait, this one included.
            max_waiting_tokens: their tokens, of prompts and outputs; a job that waits alone may have any number.
            max_held: generations of the caller that may have no end yet, this one included.

        Raises Overloaded, QuotaExceeded, RequestIdReused (another digest), UnknownGeneration (another caller's), and
        Unreadable.
        """
        generation_id = job.generation_id
        answer = await self._run(
            "submit",
            [keys.record(generation_id), keys.queue(job.model, job.job_class), keys.caller(caller)],
            [
                *(keys.TAG, generation_id, caller, digest, job.to_bytes(), gateway_id),
                *(window_ms, job.stopping.max_time_ms, SLACK_MS, job.num_tokens),
                *(max_waiting, max_waiting_tokens, max_held),
            ],
        )
        with readable(generation_id):
            submitted = parsing.parse_submitted(answer, generation_id)
        if submitted is not None:
            return submitted
        match answer[0]:
            case b"WAITING":
                raise Overloaded(int(answer[1]), max_waiting)
            case b"TOKENS":
                raise Overloaded(int(answer[1]), max_waiting_tokens, unit="tokens")
            case b"HELD":
                raise QuotaExceeded(int(answer[1]), max_held)
            case b"CONFLICT":
                raise RequestIdReused(generation_id)
            case _:
                raise UnknownGeneration(generation_id)

    async def attach(self, generation_id: str, *, caller: str, gateway_id: str) -> Record:
        """Register as a reader, before the log is read. Raises UnknownGeneration, Unreadable.

        Where the answer says that this gateway gets no rows, four others do: read the log, and attach again now and
        then, for a place may become free.
        """
        answer = await self._run("attach", [keys.record(generation_id)], [keys.TAG, caller, gateway_id])
        if answer is None:
            raise UnknownGeneration(generation_id)
        with readable(generation_id):
            return parsing.parse_record(answer)

    async def record(self, generation_id: str, *, caller: str) -> Record:
        """The record as it stands; registers nobody. Raises UnknownGeneration, Unreadable."""
        return await self.attach(generation_id, caller=caller, gateway_id="")

    async def leave(self, generation_id: str, *, gateway_id: str) -> None:
        """This gateway has no stream of the generation any more; the last one starts the resume window."""
        await self._run("leave", [keys.record(generation_id)], [keys.TAG, generation_id, gateway_id])

    async def cancel(self, generation_id: str, *, caller: str) -> tuple[State, EndReason | None]:
        """End a generation; (state now, reason once finished). Raises UnknownGeneration, Unreadable.

        One that runs ends by its owner; said again after GRACE_MS it ends in any case.
        """
        answer = await self._run("cancel", [keys.record(generation_id)], [keys.TAG, generation_id, caller, GRACE_MS])
        if answer is None:
            raise UnknownGeneration(generation_id)
        with readable(generation_id):
            return parsing.parse_end(answer)

    async def expire(self, generation_id: str) -> bool:
        """Close a generation whose deadline, or cancel, lies GRACE_MS back; whether this call did."""
        return bool(await self._run("expire", [keys.record(generation_id)], [keys.TAG, generation_id, GRACE_MS]))

    async def standings(self, generation_ids: Sequence[str]) -> list[Standing | None]:
        """Where each log stands, in one round trip; None for a record that is gone, or cannot be read."""
        return await read_standings(self._client, generation_ids)

    async def read_log(self, generation_id: str, from_position: int = 0) -> list[LogEntry]:
        """Every entry that holds a token at or after `from_position`, the marks there, and the end if there is one."""
        async with answered():
            entries = await self._client.xrange(keys.log(generation_id), min=f"{from_position}-0")
        parsed = [parse_log_entry(entry_id, fields) for entry_id, fields in entries]
        return [e for e in parsed if not (isinstance(e, TokenRow) and e.end <= from_position)]

    async def read_log_page(self, generation_id: str, place: LogPlace) -> LogPage:
        """The same by the page, for who takes it in step by step."""
        return await read_page(self._client, generation_id, place)

    async def read_ending(self, generation_id: str) -> Ending | None:
        """The log's end alone, if it has one. Raises Unreadable."""
        with readable(generation_id):
            return await read_ending(self._client, generation_id)

    async def gateway_beat(self, gateway_id: str, fields: Mapping[str, str] | None = None) -> str:
        """Live on, keep the inbox, say what we do; the inbox' epoch.

        Another one than was last heard is another inbox: rows were lost, so fill every stream.
        """
        said = [part for pair in (fields or {}).items() for part in pair]
        where = [keys.gateway(gateway_id), keys.inbox(gateway_id), keys.GATEWAYS]
        epoch: bytes = await self._run("gateway_beat", where, [gateway_id, secrets.token_hex(8), *said])
        return epoch.decode()

    async def gateway_gone(self, gateway_id: str) -> None:
        """A clean stop: the inbox and the heartbeat go at once; whose reader it was may be attached to elsewhere."""
        async with answered():
            await self._client.delete(keys.inbox(gateway_id), keys.gateway(gateway_id))
            await self._client.zrem(keys.GATEWAYS, gateway_id)

    async def read_inbox(self, gateway_id: str, last_id: str, *, block_ms: int) -> tuple[str, list[InboxRow]]:
        """Rows after `last_id` ('0' at first), waiting for one up to `block_ms`; and the id to go on from."""
        command = ("XREAD", "COUNT", 64, *_blocking(block_ms), "STREAMS", keys.inbox(gateway_id), last_id)
        rows: list[InboxRow] = []
        for entry_id, fields in await read_stream(self._client, *command, wait_ms=block_ms):
            last_id = entry_id.decode()
            rows += [parse_inbox_row(k, v) for k, v in fields.items() if k != b"hello"]
        return last_id, rows

    async def pool(self) -> list[WorkerBeat]:
        """Every worker that has beaten within a minute. Whether it lives the observer tells by its counter."""
        found = await read_beats(self._client, keys.POOL, keys.worker)
        return [WorkerBeat(name, fields.pop("beat"), fields, at_ms) for name, fields, at_ms in found]

    async def gateways(self) -> list[GatewayBeat]:
        """Every gateway that has beaten within a minute, and has not said goodbye."""
        found = await read_beats(self._client, keys.GATEWAYS, keys.gateway)
        return [GatewayBeat(name, fields, at_ms) for name, fields, at_ms in found if fields.pop("beat")]

    async def models(self, live: Collection[str] = ()) -> dict[str, str]:
        """Every model that workers have announced, with the digest of its bundle.

        Args:
            live: names to look up too: a worker of an earlier version announces without the index.
        """
        return await read_models(self._client, live)

    async def bundle(self, digest: str) -> bytes | None:
        """The bytes of a model bundle."""
        return await read_bundle(self._client, digest)

    async def queue_depths(self, models: Collection[str]) -> dict[tuple[str, str], QueueDepth]:
        """How far each jobs stream of these models is worked off, by model and class."""
        where = [(model, job_class) for model in models for job_class in keys.CLASSES]
        answers = await self._run("queues", [keys.queue(*at) for at in where], []) if where else []
        return {at: QueueDepth(*map(int, answer)) for at, answer in zip(where, answers, strict=True)}

    # --- worker ----------------------------------------------------------------------------------------------------

    async def announce(self, model: str, digest: str, bundle: bytes) -> None:
        """Publish what this worker serves, and make the model's jobs streams. Repeat it while serving: it expires."""
        where = [keys.MODELS, keys.model(model), keys.bundle(digest), *keys.queues(model)]
        await self._run("announce", where, [model, digest, bundle, MODEL_TTL_MS])

    async def is_announced(self, model: str, digest: str) -> bool:
        """Whether what announce() wrote is there: a server may come back without it."""
        return await is_announced(self._client, model, digest)

    async def worker_beat(self, worker_id: str, fields: Mapping[str, str]) -> int:
        """Live on, and say what we do; Redis' time in milliseconds."""
        said = [part for pair in fields.items() for part in pair]
        return int(await self._run("worker_beat", [keys.worker(worker_id), keys.POOL], [worker_id, *said]))

    async def read_jobs(
        self, worker_id: str, model: str, job_class: str, *, count: int, block_ms: int
    ) -> list[Delivered]:
        """New entries of one class, waiting up to `block_ms` (0: not at all) for the first."""
        stream = keys.queue(model, job_class)
        how_many = ("COUNT", count, *_blocking(block_ms))
        command = ("XREADGROUP", "GROUP", keys.GROUP, worker_id, *how_many, "STREAMS", stream, ">")
        try:
            entries = await read_stream(self._client, *command, wait_ms=block_ms)
        except ResponseError as error:
            if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                raise
            await self._run("open_queue", [stream], [])  # the server has lost the stream
            return []
        except MalformedMessage:
            await self._run("open_queue", [stream], [])  # something else stands there
            return []
        return parsing.parse_new(stream, entries)

    async def adopt(self, worker_id: str, model: str, *, max_jobs: int, may_run_alone: bool) -> list[Delivered]:
        """Entries that others left behind, now pending to us; classes in order. take() follows for each.

        Args:
            may_run_alone: whether this worker would let one that may be poison run alone; see Delivered.
        """
        arguments = [keys.TAG, worker_id, max_jobs, int(may_run_alone), MAX_CRASHES]
        return parsing.parse_deliveries(await self._run("adopt", keys.queues(model), arguments))

    async def take(self, entry: Delivered, *, worker_id: str, lease: str) -> Taken | NotTaken:
        """Turn an entry that is pending to us into a lease. Repeat with the same lease after a lost reply.

        Raises MalformedMessage where the lease is ours, and the record cannot be read.
        """
        generation_id = entry.generation_id
        answer = await self._run(
            "take",
            [keys.record(generation_id), keys.log(generation_id), entry.stream, keys.worker(worker_id)],
            [keys.TAG, generation_id, worker_id, lease, entry.entry_id, MAX_CRASHES, MAX_DEATHS],
        )
        return parsing.parse_take(answer, entry, lease)

    async def step(self, rows: Sequence[StepRow]) -> list[RowReply]:
        """Append what one step made, every generation's row in one script call; one reply a row."""
        where: list[str] = []
        arguments: list[Any] = [keys.TAG]
        for row in rows:
            where += [keys.record(row.generation_id), keys.log(row.generation_id)]
            arguments += [row.generation_id, row.lease, row.t0, row.num_tokens, row.chain0, row.chain1, row.body]
            arguments += [encode_choice_ends(row.choice_ends), row.end or "", encode_choice_ends(row.end_choices)]
            arguments.append(row.error)
        return [parsing.parse_row_reply(answer) for answer in await self._run("step", where, arguments)]

    async def release(self, entry: Delivered, *, worker_id: str, lease: str | None) -> bool:
        """Hand an entry back uncharged; `lease` None: it is pending to us, but we do not hold it."""
        where = [keys.record(entry.generation_id), entry.stream]
        return bool(await self._run("release", where, [worker_id, lease or "*", entry.entry_id, keys.WAKE]))

    async def reap(self, worker_id: str, beat_seen: str, model: str) -> int | None:
        """Free all that a dead worker held; how many entries, or None if it has beaten since `beat_seen`."""
        where = [keys.worker(worker_id), keys.POOL, *keys.queues(model)]
        total = 0
        while True:
            answer = await self._run("reap", where, [keys.TAG, worker_id, beat_seen, keys.WAKE, MAX_CRASHES])
            if answer == b"ALIVE":
                return None
            total += int(answer[0])
            if not answer[1]:
                return total

    async def consumers(self, model: str) -> list[str]:
        """Workers that hold or once asked for entries of this model."""
        found: set[str] = set()
        async with answered():
            for stream in keys.queues(model):
                try:
                    found |= {c["name"].decode() for c in await self._client.xinfo_consumers(stream, keys.GROUP)}
                except (ResponseError, MalformedMessage):
                    continue  # no such stream yet, or something else
        return sorted(found - {keys.FREE})

    async def own_pending(self, worker_id: str, model: str) -> list[Delivered]:
        """Every entry that is pending to us. One that is gone from its stream is acked on the way."""
        return parsing.parse_deliveries(await self._run("own_pending", keys.queues(model), [worker_id]))

    async def leases(self, generation_ids: Sequence[str]) -> list[tuple[str, bool]]:
        """(lease, whether a cancel is wanted) of each, in one round trip; ('', False) for one that is gone."""
        return await read_leases(self._client, generation_ids)

    def listen(self, *channels: str) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Names of channels, one for each message and each new connection; see connection.listen."""
        return connection.listen(self._client, channels)

    async def _run(self, name: str, where: Sequence[str], arguments: Sequence[Any]) -> Any:
        return await run_script(self._client, name, where, arguments)
