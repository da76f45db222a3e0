"""Jobs that were set aside: they kept killing workers, or cannot be read."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from contract import keys
from contract.connection import answered, each_answer
from contract.messages import Job, MalformedMessage
from contract.outcomes import NotTaken
from contract.scripts import run_script

_FIELDS = ("state", "caller", "job", "T", "window")


@dataclass(frozen=True, slots=True)
class DeadRecord:
    """What is still known of one: its record is kept for ten minutes after its end, or its resume window if longer."""

    caller: str
    job: Job
    num_tokens: int
    window_ms: int
    expires_in_ms: int


@dataclass(frozen=True, slots=True)
class DeadJob:
    """One job: when it was set aside, on Redis' clock, and after how many attempts.

    Attributes:
        record: None where it has expired, or cannot be read.
        why: what was wrong with it.
    """

    entry_id: str
    generation_id: str
    attempts: int
    at_ms: int
    record: DeadRecord | None
    why: str


class DeadLetters:
    """The calls. Errors come out as BrokerDown."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def set_aside(self, generation_id: str, *, lease: str, why: str) -> bool:
        """End what this lease's owner cannot read, and put it on the list; whether the lease stood."""
        where = [keys.record(generation_id), keys.log(generation_id)]
        return bool(await run_script(self._client, "set_aside", where, [keys.TAG, generation_id, lease, why]))

    async def count(self) -> int:
        """How many there are; about the newest thousand are kept. None where something else stands for the list."""
        with suppress(MalformedMessage):
            async with answered():
                return int(await self._client.xlen(keys.DEAD))
        return 0

    async def all(self) -> list[DeadJob]:
        """Every one, the oldest first."""
        entries: list[tuple[bytes, dict[bytes, bytes]]] = []
        with suppress(MalformedMessage):
            async with answered():
                entries = await self._client.xrange(keys.DEAD)
        async with answered(), self._client.pipeline(transaction=False) as pipe:
            for _, fields in entries:
                record = keys.record(fields[b"g"].decode())
                pipe.hmget(record, *_FIELDS)
                pipe.pttl(record)
            answers = await each_answer(pipe) if entries else []
        return [
            _dead_job(entry_id.decode(), fields, answers[2 * n], answers[2 * n + 1])
            for n, (entry_id, fields) in enumerate(entries)
        ]

    async def forget(self, entry_ids: Sequence[str]) -> int:
        """Take them off the list; how many of them were on it."""
        return int(await run_script(self._client, "dead_forget", [keys.DEAD], entry_ids)) if entry_ids else 0


def _dead_job(
    entry_id: str, fields: dict[bytes, bytes], record: Sequence[bytes | None] | None, left_ms: int
) -> DeadJob:
    state, caller, job, num_tokens, window_ms = record or [None] * len(_FIELDS)
    known = None
    if state is not None and job is not None:
        with suppress(ValueError):  # of a job, or of numbers
            known = DeadRecord(
                (caller or b"").decode(), Job.from_bytes(job), int(num_tokens or 0), int(window_ms or 0), int(left_ms)
            )
    at_ms = int(entry_id.partition("-")[0])
    why = fields.get(b"why", NotTaken.POISON.value.encode()).decode(errors="replace")
    return DeadJob(entry_id, fields[b"g"].decode(), int(fields[b"attempts"]), at_ms, known, why)
