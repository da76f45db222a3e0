"""What becomes of the generations of a worker that was killed: when the log of each has its next token."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import redis.asyncio

from contract import keys
from contract.broker import PROVEN_TOKENS

POLL_S = 0.02
MAX_WAIT_S = 60.0
FIELDS = ("state", "owner", "T", "attempt", "last_ms")


@dataclass(frozen=True, slots=True)
class Place:
    """A record at one moment."""

    state: str
    owner: str
    num_tokens: int
    attempt: int
    last_ms: int


async def places(client: "redis.asyncio.Redis", generation_ids: Iterable[str]) -> dict[str, Place]:
    """Every record that stands, by its generation, in one round trip."""
    ids = list(generation_ids)
    async with client.pipeline(transaction=False) as pipe:
        for generation_id in ids:
            pipe.hmget(keys.record(generation_id), FIELDS)
        answers: list[list[Any]] = await pipe.execute() if ids else []
    found = {}
    for generation_id, (state, owner, num_tokens, attempt, last_ms) in zip(ids, answers, strict=True):
        if state is not None:
            found[generation_id] = Place(
                state.decode(), owner.decode(), int(num_tokens), int(attempt), int(float(last_ms))
            )
    return found


async def recoveries(
    client: "redis.asyncio.Redis", held: dict[str, Place], killed_s: float
) -> tuple[list[float], list[str]]:
    """Wait until every generation has its next token and has proved itself, or has ended.

    One that is struck again before it has proved itself runs alone, in case it is what kills workers: that is another
    matter than recovery.

    Args:
        held: what the dead workers held just before.
        killed_s: when they were killed, by time.time(); Redis runs on the same clock.

    Returns:
        Seconds from the kill to the next logged token, one for each generation that got one; those that did not within
        MAX_WAIT_S.
    """
    found: list[float] = []
    base: dict[str, int] = {}  # tokens in the log when its worker was dead
    waiting = dict(held)
    proved: dict[str, int] = {}  # tokens in the log when it has proved itself
    deadline_s = time.monotonic() + MAX_WAIT_S
    while (waiting or proved) and time.monotonic() < deadline_s:
        now = await places(client, [*waiting, *proved])
        for generation_id, before in tuple(waiting.items()):
            place = now.get(generation_id)
            if place is None:
                del waiting[generation_id]
            elif place.attempt == before.attempt and place.state != "finished":
                base[generation_id] = place.num_tokens
            elif place.num_tokens > base.setdefault(generation_id, place.num_tokens):
                found.append(max(0.0, place.last_ms / 1000 - killed_s))
                proved[generation_id] = base[generation_id] + PROVEN_TOKENS
                del waiting[generation_id]
            elif place.state == "finished":  # cancelled meanwhile, or it lacked nothing but its end
                del waiting[generation_id]
        proved = {
            id_: num_tokens
            for id_, num_tokens in proved.items()
            if id_ in now and now[id_].state != "finished" and now[id_].num_tokens < num_tokens
        }
        await asyncio.sleep(POLL_S)
    return found, [*waiting, *proved]
