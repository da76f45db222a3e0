"""Jobs and logs that are damaged in Redis: each is set aside with its reason, and no other generation notices."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis.asyncio
from hypothesis import given

from contract import keys
from contract.broker import Broker, Delivered, StepRow, Taken, new_lease
from contract.errors import Unreadable
from contract.log_pages import LogPage, LogPlace
from contract.messages import (
    CHAIN_START,
    EndReason,
    Job,
    LoggedToken,
    MalformedMessage,
    encode_tokens,
)
from tests.contract.test_malformed import another_json, damaged
from tests.until import until
from tests.worker.double_engine_process import double_bundle
from tests.worker.engine_double import EngineDouble, Gate, expected_ids, text_of
from tests.worker.rig import MODEL, finished, has_tokens, local_worker, make_job, submit
from worker import reconcile
from worker.attempt import Attempt
from worker.bundle import token_pieces
from worker.take import to_request

NUM_LOGGED, NUM_TOKENS = 6, 12
Entries = list[tuple[bytes, dict[bytes, bytes]]]
GOOD_JOB = make_job([5, 6], NUM_TOKENS)
PIECES, EOS_IDS = token_pieces(double_bundle()), double_bundle().eos_ids


def token(position: int, token_id: int, choice: int = 0) -> LoggedToken:
    """As the worker of these tests makes it."""
    return LoggedToken(choice, position, position, token_id, text_of(token_id))


def row_of(job: Job, lease: str, start: int, stop: int) -> StepRow:
    """Tokens from start to before stop."""
    ids = expected_ids(job.prompt_ids, stop)
    _, chain0 = encode_tokens([token(n, ids[n]) for n in range(start)], CHAIN_START)
    body, chain1 = encode_tokens([token(n, ids[n]) for n in range(start, stop)], chain0)
    return StepRow(job.generation_id, lease, start, stop - start, chain0, chain1, body)


async def take(broker: Broker, entry: Delivered, worker_id: str) -> Taken:
    """It must succeed."""
    taken = await broker.take(entry, worker_id=worker_id, lease=new_lease())
    assert isinstance(taken, Taken)
    return taken


async def half_done(broker: Broker, prompt_id: int) -> str:
    """A generation whose first tokens are in its log, one an entry, and that waits for a worker to go on with it."""
    job = make_job([prompt_id], NUM_TOKENS)
    await submit(broker, job)
    (entry,) = await broker.read_jobs("first", MODEL, "normal", count=1, block_ms=0)
    taken = await take(broker, entry, "first")
    for position in range(NUM_LOGGED):
        await broker.step([row_of(job, taken.lease, position, position + 1)])
    assert await broker.release(entry, worker_id="first", lease=taken.lease)
    return job.generation_id


async def rewrite_log(client: Any, generation_id: str, change: Callable[[Entries], Entries]) -> None:
    """Damage a log behind the scripts' back."""
    log = keys.log(generation_id)
    entries = await client.xrange(log)
    await client.delete(log)
    for entry_id, fields in change(entries):
        await client.xadd(log, fields, id=entry_id)
    await client.pexpire(log, 600_000)


def with_third(**fields: bytes) -> Callable[[Entries], Entries]:
    """The third token's entry with these fields instead of its own; the first entry of the log is a mark."""
    return lambda es: [*es[:3], (es[3][0], {**es[3][1], **{k.encode(): v for k, v in fields.items()}}), *es[4:]]


LOGS: dict[str, tuple[Callable[[Entries], Entries], str]] = {
    "no protobuf": (with_third(c=b"\xff\xff\xff"), "not tokens"),
    "a position below 0": (with_third(f=b"-7"), "tokens -7 to 3"),
    "a position that is no number": (with_third(f=b"many"), "log entry"),
    "ends too deep to be read": (with_third(x=b"[" * 100_000), "not choice ends"),
    "a choice that the job has not": (with_third(c=encode_tokens([token(2, 9, choice=7)], 0)[0]), "another's"),
    "another token": (with_third(c=encode_tokens([token(2, 9)], 0)[0]), "others than were written"),
    "an entry less at the end": (lambda entries: entries[:-1], "others than were written (5 tokens, 6 by the record)"),
}
RECORDS: dict[str, tuple[dict[str, object], str]] = {
    "no job": ({"job": b"\xff"}, "not a job"),
    "a prompt of texts": ({"job": make_job([1], 9).to_bytes().replace(b'"prompt_ids":[1]', b'"prompt_ids":["a"]')}, ""),
    "another's job": ({"job": make_job([1], 9).to_bytes()}, "the job is that of"),
    "a chain that is no number": ({"chain": "x"}, "invalid literal"),
    "a count that is no number": ({"T": "x"}, "Invalid stream ID"),
}


async def test_each_is_set_aside_and_no_other_is_harmed(broker: Broker, redis_url: str) -> None:
    """All at one worker, beside one that goes on and a new one; none of them is charged with a crash."""
    client: Any = redis.asyncio.Redis.from_url(redis_url)
    whys: dict[str, str] = {}
    for number, (change, why) in enumerate(LOGS.values()):
        whys[generation_id := await half_done(broker, 20 + number)] = why
        await rewrite_log(client, generation_id, change)
    for number, (fields, why) in enumerate(RECORDS.values()):
        whys[generation_id := await half_done(broker, 50 + number)] = why
        await client.hset(keys.record(generation_id), mapping=fields)
    goes_on, new = await half_done(broker, 7), await submit(broker, make_job([8], NUM_TOKENS))

    async with local_worker(broker) as worker:
        assert (await finished(broker, goes_on)).ids == expected_ids([7], NUM_TOKENS)
        assert (await finished(broker, new)).ids == expected_ids([8], NUM_TOKENS)
        for generation_id in whys:
            await until_failed(client, generation_id)
        assert not worker.serving.done()
    dead = {each.generation_id: each for each in await broker.dead.all()}
    await client.aclose()

    assert dead.keys() == whys.keys()
    for generation_id, why in whys.items():
        assert why in dead[generation_id].why
    assert all(dead[generation_id].record is not None for generation_id in list(whys)[: len(LOGS)]), "can be retried"


async def until_failed(client: Any, generation_id: str) -> None:
    """Wait for its end, by the record alone; its log may be unreadable."""

    async def has_failed() -> bool:
        state, reason, crashes = await client.hmget(keys.record(generation_id), "state", "reason", "crashes")
        return (state, reason, crashes) == (b"finished", EndReason.FAILED.value.encode(), b"0")

    await until(has_failed)


async def test_what_overwrites_one_that_runs_ends_that_one(
    broker: Broker, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record, or its log: its next step fails, its entry comes back, and the take sets it aside."""
    monkeypatch.setattr(reconcile, "PERIOD_S", 0.02)
    client: Any = redis.asyncio.Redis.from_url(redis_url)
    gate = Gate()
    no_record, no_log, goes_on = [await submit(broker, make_job([prompt_id], NUM_TOKENS)) for prompt_id in (7, 8, 9)]
    async with local_worker(broker, EngineDouble(gate)) as worker:
        await until(lambda: worker.progress.num_running == 3)
        gate.allow(4)  # the first of them may know one generation only
        for each in (no_record, no_log, goes_on):
            await until(lambda each=each: has_tokens(broker, each, 3))
        for key in (keys.record(no_record), keys.log(no_log)):
            await client.set(key, "something else", px=600_000)
        gate.open()
        assert (await finished(broker, goes_on)).ids == expected_ids([9], NUM_TOKENS)

        async def are_dead() -> bool:
            return await broker.dead.count() == 2

        await until(are_dead)
        new = await submit(broker, make_job([10], NUM_TOKENS))
        assert (await finished(broker, new)).ids == expected_ids([10], NUM_TOKENS)
        assert not worker.serving.done()
    dead = {each.generation_id: each.why for each in await broker.dead.all()}
    await client.aclose()

    assert dead.keys() == {no_record, no_log}
    assert all(why.startswith("WRONGTYPE") for why in dead.values())
    with pytest.raises(Unreadable):
        await broker.record(no_record, caller="anonymous")


class RobbedBroker(Broker):
    """While `victim` reads a log for the first time, its lease goes to another worker, which adds a token."""

    robbed: "tuple[Delivered, str] | None" = None

    async def read_log_page(self, generation_id: str, place: LogPlace) -> LogPage:
        """Rob, then read."""
        if self.robbed is None:
            assert await self.reap("victim", "", MODEL) == 1
            (entry,) = await self.adopt("robber", MODEL, max_jobs=1, may_run_alone=True)
            taken = await take(self, entry, "robber")
            self.robbed = entry, taken.lease
            await self.step([row_of(taken.job, taken.lease, NUM_LOGGED, NUM_LOGGED + 1)])
        return await super().read_log_page(generation_id, place)


@asynccontextmanager
async def robbed_broker(redis_url: str) -> AsyncIterator[RobbedBroker]:
    """At this server."""
    broker = RobbedBroker.connect(redis_url)
    yield broker
    await broker.close()


async def test_a_log_that_went_on_meanwhile_is_not_damaged(broker: Broker, redis_url: str) -> None:
    """The worker finds its lease lost and claims on; the generation is the other's, and ends well."""
    generation_id = await half_done(broker, 7)
    async with robbed_broker(redis_url) as robbed, local_worker(robbed, worker_id="victim"):
        other = await submit(broker, make_job([8], 4))
        assert (await finished(broker, other)).ids == expected_ids([8], 4)
        assert robbed.robbed is not None
        entry, lease = robbed.robbed
        assert await broker.release(entry, worker_id="robber", lease=lease)
        logged = await finished(broker, generation_id)

    assert logged.ids == expected_ids([7], NUM_TOKENS)
    assert logged.attempts == [1, 2, 3, 4]
    assert await broker.dead.count() == 0


@given(damaged(GOOD_JOB.to_bytes()) | another_json(GOOD_JOB.to_bytes()))
def test_any_job_that_can_be_read_can_be_asked_of_the_engine(body: bytes) -> None:
    """Or is refused by name: what is wrong in it shows before the engine has it."""
    try:
        job = Job.from_bytes(body)
        entry = Delivered("q", "1-1", job.generation_id)
        attempt = Attempt(Taken(job, "lease", entry, 1, 0, 0, False, 0, 60_000, 1), PIECES, taken_s=0.0)
        request = to_request(attempt, EOS_IDS)
    except ValueError:
        return
    assert all(type(each) is int for each in request.prompt_ids)


@pytest.mark.parametrize("logged", [[token(0, 9, choice=1)], [token(1, 9)], [token(0, 9), token(0, 9)]])
def test_tokens_out_of_turn_are_named(logged: Sequence[LoggedToken]) -> None:
    """Before they are counted where there is nothing to count."""
    entry = Delivered("q", "1-1", GOOD_JOB.generation_id)
    attempt = Attempt(Taken(GOOD_JOB, "lease", entry, 2, 1, 0, False, 0, 60_000, 1), PIECES, taken_s=0.0)
    with pytest.raises(MalformedMessage, match="is another's"):
        attempt.resume(list(logged))
