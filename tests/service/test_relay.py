"""No token lost, none twice: streams over an inbox that loses, doubles and forges, and a log that goes back."""

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest
import redis.asyncio

from contract import keys
from contract.broker import Standing, State, StepRow
from contract.log_pages import LogPage, LogPlace
from contract.messages import ChoiceEnd, EndReason, LoggedToken, encode_tokens
from service.relay import pause_after_s
from service.token_stream import TokenStream
from tests.service.gateways import (
    RunningGateway,
    error_of,
    open_stream,
    prompt,
    read_rest,
    read_until,
)
from tests.service.scripted_worker import ScriptedWorker, Work, token_at
from tests.service.test_cursor import JOB
from tests.until import until


async def say_unheard(raw: "redis.asyncio.Redis", work: Work, *texts: str) -> None:
    """Append tokens whose inbox rows are lost."""
    record = keys.record(work.generation_id)
    readers = await raw.hget(record, "readers")
    await raw.hset(record, "readers", "")
    await work.say(*texts)
    await raw.hset(record, "readers", readers)


async def inbox_of(raw: "redis.asyncio.Redis", generation_id: str) -> str:
    """The inbox of the one gateway that reads the generation."""
    readers: Any = await raw.hget(keys.record(generation_id), "readers")
    return keys.inbox(readers.decode())


async def forge(raw: "redis.asyncio.Redis", work: Work, t0: int, chain0: int, *texts: str) -> None:
    """Put a row into the inbox that no script accepted, with ids that the worker never says."""
    body, _ = encode_tokens([other_token_at(t0 + n, text) for n, text in enumerate(texts)], chain0)
    head = f"{t0} {t0 + len(texts)} {chain0}|".encode()
    await raw.xadd(await inbox_of(raw, work.generation_id), {f"T{work.generation_id}": head + body})


async def lose_tail(raw: "redis.asyncio.Redis", work: Work, num_left: int) -> None:
    """Make the log and the record forget tokens that were said one by one, as a cut append-only file does."""
    log, record = keys.log(work.generation_id), keys.record(work.generation_id)
    _, chain = encode_tokens(work.tokens[:num_left], 0)
    kept: Any = await raw.xrange(log, max=f"{num_left}-0")
    async with raw.pipeline(transaction=True) as pipe:
        pipe.delete(log)
        for entry_id, fields in kept:
            pipe.xadd(log, fields, id=entry_id)
        pipe.pexpire(log, 60_000)
        pipe.hset(record, mapping={"T": num_left, "chain": chain})
        await pipe.execute()
    work.tokens, work.chain = work.tokens[:num_left], chain


def other_token_at(position: int, text: str) -> LoggedToken:
    """A token that `token_at` never gives."""
    return replace(token_at(position, text), token_id=7)


async def test_a_gap_is_filled_from_the_log(
    gateway: RunningGateway, worker: ScriptedWorker, raw: "redis.asyncio.Redis"
) -> None:
    """Rows lost in the middle are read from the log as soon as the next row shows the gap."""
    call, received = await open_stream(gateway, prompt())
    work = await worker.take(received.generation_id)
    await work.say("a")
    await read_until(call, received, 1)
    await say_unheard(raw, work, "b", "c")
    await work.say("d")
    await read_until(call, received, 4)
    await work.finish()
    await read_rest(call, received)

    assert received.text == work.text == "abcd"


async def test_a_lost_last_row_is_found_by_the_silence(
    gateway: RunningGateway, worker: ScriptedWorker, raw: "redis.asyncio.Redis"
) -> None:
    """No later row reveals it; the stream compares itself with its record."""
    call, received = await open_stream(gateway, prompt())
    work = await worker.take(received.generation_id)
    await work.say("a")
    await read_until(call, received, 1)
    await say_unheard(raw, work, "b")
    await read_until(call, received, 2)
    record = keys.record(work.generation_id)
    await raw.hset(record, "readers", "")
    await work.finish()
    await read_rest(call, received)

    assert received.text == "ab"
    assert received.kinds[-2:] == ["choice_finished", "completed"]


async def test_a_reader_that_the_record_has_forgotten_registers_again(
    gateway: RunningGateway, worker: ScriptedWorker, raw: "redis.asyncio.Redis"
) -> None:
    """A lost tail took its attach along: an unread generation would be cancelled, though somebody reads it."""
    call, received = await open_stream(gateway, prompt(request_id="forgotten"))
    work = await worker.take(received.generation_id)
    await work.say("a")
    await read_until(call, received, 1)
    record = keys.record(work.generation_id)
    readers = await raw.hget(record, "readers")
    await raw.hset(record, mapping={"readers": "", "unread_since": 1})

    async def is_registered() -> bool:
        return bool(await raw.hget(record, "readers") == readers)

    await until(is_registered)
    assert not (await work.say("b")).cancel
    await work.finish()
    await read_rest(call, received)

    assert received.text == "ab"
    assert received.kinds == ["accepted", "started", "tokens", "choice_finished", "completed"]


async def test_a_lost_mark_is_told_all_the_same(
    gateway: RunningGateway, worker: ScriptedWorker, raw: "redis.asyncio.Redis"
) -> None:
    """`started` comes for every attempt, be it late."""
    call, received = await open_stream(gateway, prompt())
    record = keys.record(received.generation_id)
    readers = await raw.hget(record, "readers")
    await raw.hset(record, "readers", "")
    work = await worker.take(received.generation_id)
    await raw.hset(record, "readers", readers)
    await work.say("a")
    await work.say("b")
    await work.finish()
    await read_rest(call, received)

    assert received.text == "ab"
    assert received.only("started").started.attempt == 1
    assert received.kinds[-2:] == ["choice_finished", "completed"]


async def test_an_inbox_that_vanished_is_made_anew_and_every_stream_refilled(
    gateway: RunningGateway, worker: ScriptedWorker, raw: "redis.asyncio.Redis"
) -> None:
    """What was said while there was no inbox arrives."""
    streams = [await open_stream(gateway, prompt()) for _ in range(3)]
    works = [await worker.take(received.generation_id) for _, received in streams]
    for work in works:
        await work.say("a")
    inbox = await inbox_of(raw, works[0].generation_id)
    for n in range(3):
        await raw.delete(inbox)
        for work in works:
            await work.say(f"b{n}")
    for (call, received), work in zip(streams, works, strict=True):
        await read_until(call, received, 4)
        await work.finish()
        await read_rest(call, received)
        assert received.text == "ab0b1b2"


async def test_forged_rows_change_nothing(
    gateway: RunningGateway, worker: ScriptedWorker, raw: "redis.asyncio.Redis"
) -> None:
    """Rows with a wrong chain, other tokens in the past, from a future, doubled, and with no tokens at all."""
    call, received = await open_stream(gateway, prompt())
    work = await worker.take(received.generation_id)
    await work.say("a", "b")
    await read_until(call, received, 2)

    await forge(raw, work, 2, 12345, "zombie")
    await forge(raw, work, 0, 0, "not a", "not b", "not c")
    await forge(raw, work, 7, 99, "future")
    inbox, field = await inbox_of(raw, work.generation_id), f"T{work.generation_id}"
    await raw.xadd(inbox, {field: b"0 2 0|" + encode_tokens(work.tokens, 0)[0]})
    await raw.xadd(inbox, {field: f"2 3 {work.chain}|no tokens".encode()})
    await work.say("c")
    await work.finish()
    await read_rest(call, received)

    assert received.text == "abc"


async def test_an_unreadable_inbox_row_stops_nobody(
    gateway: RunningGateway, worker: ScriptedWorker, raw: "redis.asyncio.Redis"
) -> None:
    """A row of a kind that this version does not know is passed over, and the logs are read."""
    call, received = await open_stream(gateway, prompt())
    work = await worker.take(received.generation_id)
    await work.say("a")
    await read_until(call, received, 1)
    await raw.xadd(await inbox_of(raw, work.generation_id), {f"?{work.generation_id}": b"from the future"})
    await work.say("b")
    await work.finish()
    await read_rest(call, received)

    assert received.text == "ab"


async def test_an_end_that_this_version_does_not_know_harms_one_stream_only(
    gateway: RunningGateway, worker: ScriptedWorker
) -> None:
    """A newer worker's reason: INTERNAL there, and the others go on."""
    (odd_call, odd), (call, received) = await open_stream(gateway, prompt()), await open_stream(gateway, prompt())
    odd_work, work = await worker.take(odd.generation_id), await worker.take(received.generation_id)
    await odd_work.finish(ends=[ChoiceEnd(0, "ENTROPY", 0)])
    error = await error_of(odd_call, odd)
    await work.say("a")
    await work.finish()
    await read_rest(call, received)

    assert error.code() is grpc.StatusCode.INTERNAL
    assert received.text == "a"


async def test_a_log_that_lost_its_tail_is_waited_for(
    gateway: RunningGateway, worker: ScriptedWorker, raw: "redis.asyncio.Redis"
) -> None:
    """The worker appends the same tokens again; the client gets none of them twice."""
    call, received = await open_stream(gateway, prompt())
    work = await worker.take(received.generation_id)
    for text in "abcde":
        await work.say(text)
    await read_until(call, received, 5)
    await lose_tail(raw, work, 2)
    for text in "cdef":
        await work.say(text)
    await work.finish()
    await read_rest(call, received)

    assert received.text == "abcdef"


async def test_a_log_that_ends_below_what_was_delivered_is_data_loss(
    gateway: RunningGateway, worker: ScriptedWorker, raw: "redis.asyncio.Redis"
) -> None:
    """The reader has what no log has: it is told so, never silently."""
    call, received = await open_stream(gateway, prompt())
    work = await worker.take(received.generation_id)
    for text in "abcde":
        await work.say(text)
    await read_until(call, received, 5)
    await lose_tail(raw, work, 2)
    await work.finish()
    error = await error_of(call, received)

    assert error.code() is grpc.StatusCode.DATA_LOSS
    assert received.text == "abcde"


async def test_a_log_that_goes_another_way_is_data_loss(
    gateway: RunningGateway, worker: ScriptedWorker, raw: "redis.asyncio.Redis"
) -> None:
    """After a lost tail other tokens were drawn: the chain shows the fork."""
    call, received = await open_stream(gateway, prompt())
    work = await worker.take(received.generation_id)
    for text in "abcde":
        await work.say(text)
    await read_until(call, received, 5)
    await lose_tail(raw, work, 2)
    work.chain = await _say_other_tokens(work, 2, 6)
    error = await error_of(call, received)
    work.tokens += [token_at(n, "?") for n in range(2, 8)]
    await work.finish(EndReason.CANCELLED)

    assert error.code() is grpc.StatusCode.DATA_LOSS
    assert received.text == "abcde"


async def _say_other_tokens(work: Work, start: int, count: int) -> int:
    """Tokens with ids that `token_at` never gives; the chain after them."""
    tokens = [other_token_at(n, "?") for n in range(start, start + count)]
    body, chain = encode_tokens(tokens, work.chain)
    row = StepRow(work.generation_id, work.taken.lease, start, count, work.chain, chain, body)
    (reply,) = await work.broker.step([row])
    assert reply.num_tokens == start + count
    return chain


async def test_a_record_that_is_lost_before_any_token_is_submitted_again(
    gateway: RunningGateway, worker: ScriptedWorker, raw: "redis.asyncio.Redis"
) -> None:
    """The gateway still has the job; the client notices nothing."""
    call, received = await open_stream(gateway, prompt())
    generation_id = received.generation_id
    await raw.delete(keys.record(generation_id), keys.log(generation_id))
    work = await worker.take(generation_id)
    await work.say("a")
    await work.finish()
    await read_rest(call, received)

    assert received.text == "a"
    assert received.kinds == ["accepted", "started", "tokens", "choice_finished", "completed"]


async def test_a_record_that_is_lost_after_tokens_is_data_loss(
    gateway: RunningGateway, worker: ScriptedWorker, raw: "redis.asyncio.Redis"
) -> None:
    """Another run might say something else."""
    call, received = await open_stream(gateway, prompt())
    work = await worker.take(received.generation_id)
    await work.say("a")
    await read_until(call, received, 1)
    await raw.delete(keys.record(received.generation_id), keys.log(received.generation_id))
    error = await error_of(call, received)

    assert error.code() is grpc.StatusCode.DATA_LOSS


def test_a_standing_that_agrees_needs_no_reading() -> None:
    """The comparison asks for the log only where something differs."""

    async def no_log(generation_id: str, place: LogPlace) -> LogPage:
        raise AssertionError("the log was read")

    async def run() -> None:
        stream = TokenStream("0.x", "anonymous", JOB, no_log, 0.0)
        stream.compare(Standing(State.QUEUED, 0, 0, 0, 0, 0, frozenset()))
        waiting = asyncio.ensure_future(stream.next_messages())
        await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("num_streams", "pause_s"), [(0, 0), (1, 0), (9, 0), (64, 0.0064), (128, 0.0128), (4096, 0.025)]
)
def test_a_few_streams_are_never_kept_waiting(num_streams: int, pause_s: float) -> None:
    """Tokens of many gather a while, so that a message has several; never for long."""
    assert pause_after_s(num_streams) == pytest.approx(pause_s)
