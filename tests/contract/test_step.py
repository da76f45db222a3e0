"""step: fenced appends for many generations in one call, with one answer each."""

from typing import Any

import pytest
from redis.exceptions import ResponseError

from contract import keys
from contract.broker import RowOutcome, RowReply, State, StepRow
from contract.messages import ChoiceEnd, Ending, EndReason, TokenRow
from tests.contract.rig import CALLER, GATEWAY, OTHER_WORKER, QUEUE, WORKER, Rig, Text


async def test_tokens_go_to_log_record_and_inbox_together(rig: Rig) -> None:
    """The three say the same after one call."""
    taken, text = await rig.start()
    row = text.row(taken.lease, 0, 3)
    assert await rig.step(row) == RowReply(RowOutcome.OK, 3, False)
    entry = TokenRow(0, 3, 0, row.body)
    assert (await rig.broker.read_log(text.generation_id))[-1] == entry
    assert (await rig.inbox())[-1].entry == entry
    [standing] = await rig.broker.standings([text.generation_id])
    assert standing is not None
    assert (standing.state, standing.num_tokens, standing.chain, standing.attempt) == (
        State.RUNNING,
        3,
        text.chains[3],
        1,
    )


async def test_the_log_entry_is_named_by_its_end(rig: Rig) -> None:
    """Its id is T-0, T being all tokens so far, so that no two entries can hold the same position."""
    taken, text = await rig.start()
    await rig.step(text.row(taken.lease, 0, 3))
    await rig.step(text.row(taken.lease, 3, 5))
    ids = [entry.decode() for entry, _ in await rig.client.xrange(keys.log(text.generation_id))]
    assert ids == ["0-1", "3-0", "5-0"]


async def test_an_end_closes_log_state_and_entry_together(rig: Rig) -> None:
    """After the call the log is shut for ever, the record finished, the job acked and deleted, the reader told."""
    taken, text = await rig.start()
    assert await rig.step(text.last_row(taken.lease, 0, 2)) == RowReply(RowOutcome.DONE, 2, False)
    ending = (await rig.broker.read_log(text.generation_id))[-1]
    assert isinstance(ending, Ending)
    assert (ending.reason, ending.num_tokens, ending.attempts) == (EndReason.DONE, 2, 1)
    assert ending.choice_ends == (ChoiceEnd(0, "EOS", 2),)
    times = ending.times
    assert 0 < times.accepted_ms <= times.taken_ms <= times.first_token_ms <= times.last_token_ms <= times.ended_ms
    record = await rig.fields(text.generation_id)
    assert (record["state"], record["owner"], record["lease"]) == ("finished", "", "")
    assert (await rig.pending(), await rig.client.xlen(QUEUE)) == ({}, 0)
    assert [row.entry for row in await rig.inbox()][-2:] == (await rig.broker.read_log(text.generation_id))[-2:]
    with pytest.raises(ResponseError, match=r"last possible ID|equal or smaller"):
        await rig.client.xadd(keys.log(text.generation_id), {"c": "x"}, id="99-0")


async def test_the_end_may_carry_no_tokens(rig: Rig) -> None:
    """An empty answer is an answer; its times say that there was no token."""
    taken, text = await rig.start()
    assert (await rig.step(text.last_row(taken.lease, 0, 0))).outcome is RowOutcome.DONE
    ending = (await rig.broker.read_log(text.generation_id))[-1]
    assert isinstance(ending, Ending)
    assert (ending.num_tokens, ending.times.first_token_ms, ending.times.last_token_ms) == (0, 0, 0)


async def test_a_failure_carries_its_error(rig: Rig) -> None:
    """Whatever bytes the error has: log and inbox give the same."""
    taken, text = await rig.start()
    error = "engine error | 7 zeilen\nüber 8 "
    await rig.step(text.row(taken.lease, 0, 1, end=EndReason.FAILED, error=error))
    ending = (await rig.broker.read_log(text.generation_id))[-1]
    assert isinstance(ending, Ending)
    assert (ending.reason, ending.error, ending.choice_ends) == (EndReason.FAILED, error, ())
    assert (await rig.inbox())[-1].entry == ending


async def test_a_choice_may_end_before_the_others(rig: Rig) -> None:
    """Its end rides on its last token in the log, and is a row of its own in the inbox."""
    taken, text = await rig.start()
    ends = (ChoiceEnd(1, "STOP_STRING", 2, "\n\n", " held | back"),)
    row = text.row(taken.lease, 0, 2, choice_ends=ends)
    await rig.step(row)
    assert (await rig.broker.read_log(text.generation_id))[-1] == TokenRow(0, 2, 0, row.body, ends)
    _, tokens, choices = (each.entry for each in await rig.inbox())
    assert tokens == TokenRow(0, 2, 0, row.body)
    assert choices == TokenRow(2, 2, text.chains[2], b"", ends)


@pytest.mark.parametrize("is_last", [False, True])
async def test_the_same_step_twice_is_one(rig: Rig, is_last: bool) -> None:
    """A retry after a lost reply writes nothing and gets the answer it missed."""
    taken, text = await rig.start()
    row = text.last_row(taken.lease, 0, 3) if is_last else text.row(taken.lease, 0, 3)
    first = await rig.step(row)
    before = await rig.snapshot()
    assert await rig.step(row) == first
    assert await rig.snapshot() == before


async def test_a_row_that_begins_before_the_logs_end_goes_back(rig: Rig) -> None:
    """After a lost reply the worker sends more from where it thinks the log is; it learns where it really is."""
    taken, text = await rig.start()
    await rig.step(text.row(taken.lease, 0, 3))
    before = await rig.snapshot()
    assert await rig.step(text.row(taken.lease, 0, 5)) == RowReply(RowOutcome.BACK, 3, False)
    assert await rig.snapshot() == before
    assert await rig.step(text.row(taken.lease, 3, 5)) == RowReply(RowOutcome.OK, 5, False)


async def test_a_row_beyond_the_log_goes_back(rig: Rig) -> None:
    """After a lost tail of the log the worker is told from where to send again; also with its end."""
    taken, text = await rig.start()
    await rig.step(text.row(taken.lease, 0, 2))
    assert await rig.step(text.row(taken.lease, 4, 5)) == RowReply(RowOutcome.BACK, 2, False)
    assert await rig.step(text.last_row(taken.lease, 5, 5)) == RowReply(RowOutcome.BACK, 2, False)
    assert await rig.step(text.last_row(taken.lease, 2, 5)) == RowReply(RowOutcome.DONE, 5, False)
    assert await rig.token_ids(text.generation_id) == [token.token_id for token in text.tokens]


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(lambda lease, other: other.row(lease, 3, 4), id="continues-another-text"),
        pytest.param(lambda lease, other: other.row(lease, 0, 3), id="repeats-another-text"),
        pytest.param(lambda lease, other: other.last_row(lease, 0, 2), id="ends-short-of-the-log"),
        pytest.param(lambda lease, other: other.row("", 3, 4), id="no-lease"),
        pytest.param(lambda lease, other: other.row("0" * 16, 3, 4), id="another-lease"),
    ],
)
async def test_an_owner_that_parted_from_its_log_is_fenced(rig: Rig, row: Any) -> None:
    """Neither log nor record nor inbox changes."""
    taken, text = await rig.start()
    await rig.step(text.row(taken.lease, 0, 3))
    other = Text(text.generation_id, salt=100)
    before = await rig.snapshot()
    assert (await rig.step(row(taken.lease, other))).outcome is RowOutcome.FENCED
    assert await rig.snapshot() == before


@pytest.mark.parametrize("is_last", [False, True])
async def test_a_zombie_changes_nothing(rig: Rig, is_last: bool) -> None:
    """A worker that was reaped and replaced: its tokens reach neither the log nor a client, its end ends nothing."""
    taken, text = await rig.start()
    await rig.step(text.row(taken.lease, 0, 2))
    await rig.kill()
    late = text.last_row(taken.lease, 2, 4) if is_last else text.row(taken.lease, 2, 4)
    before = await rig.snapshot()
    assert (await rig.step(late)).outcome is RowOutcome.FENCED
    assert await rig.snapshot() == before
    [entry] = await rig.adopt()
    again = await rig.take(entry, OTHER_WORKER)
    before = await rig.snapshot()
    assert (await rig.step(late)).outcome is RowOutcome.FENCED
    assert await rig.snapshot() == before
    assert await rig.step(text.last_row(again.lease, 2, 3)) == RowReply(RowOutcome.DONE, 3, False)
    assert (await rig.step(late)).outcome is RowOutcome.FENCED


async def test_a_gone_generation_is_fenced(rig: Rig) -> None:
    """Its record has expired: there is nothing to append to, and nothing is made."""
    taken, text = await rig.start()
    await rig.client.delete(keys.record(text.generation_id), keys.log(text.generation_id))
    before = await rig.snapshot()
    assert await rig.step(text.row(taken.lease, 0, 2)) == RowReply(RowOutcome.FENCED, 0, False)
    assert await rig.snapshot() == before


async def test_no_row_fails_another(rig: Rig) -> None:
    """64 rows: one is fenced, one goes back, one meets a broken record, one a log that refuses; 60 get through."""
    await rig.broker.gateway_beat("gateway-b")
    for number in range(64):
        await rig.submit(gateway_id=GATEWAY if number % 2 else "gateway-b")
    started = [(await rig.take(entry), Text(entry.generation_id)) for entry in await rig.deliver(count=64)]
    rows = [text.row(taken.lease, 0, 2) for taken, text in started]
    rows[5] = started[5][1].row("0" * 16, 0, 2)
    rows[9] = started[9][1].row(started[9][0].lease, 7, 8)
    await rig.client.set(keys.record(rows[20].generation_id), "not a hash", px=60_000)
    await rig.client.xadd(keys.log(rows[33].generation_id), {"s": 9, "w": "x"}, id="50-0")
    replies = [reply.outcome for reply in await rig.broker.step(rows)]
    expected = [RowOutcome.OK] * 64
    expected[5] = expected[20] = expected[33] = RowOutcome.FENCED
    expected[9] = RowOutcome.BACK
    assert replies == expected
    good = [row for row, outcome in zip(rows, replies, strict=True) if outcome is RowOutcome.OK]
    for gateway, parity in ((GATEWAY, 1), ("gateway-b", 0)):
        given = {
            each.generation_id: each.entry for each in await rig.inbox(gateway) if isinstance(each.entry, TokenRow)
        }
        wanted = [row for number, row in enumerate(rows) if number % 2 == parity and row in good]
        assert given == {row.generation_id: TokenRow(0, 2, 0, row.body) for row in wanted}
    for row in good:
        assert len(await rig.token_ids(row.generation_id)) == 2
    await rig.client.delete(keys.record(rows[20].generation_id))


async def test_a_step_of_many_generations_fits_one_call(rig: Rig) -> None:
    """More rows than fit one XADD of the inbox: they become several entries, in order."""
    await rig.broker.gateway_beat(GATEWAY)
    for _ in range(600):
        await rig.submit()
    leases = [await rig.take(entry) for entry in await rig.deliver(count=600)]
    rows = [Text(taken.job.generation_id).last_row(taken.lease, 0, 1) for taken in leases]
    replies = await rig.broker.step(rows)
    assert {reply.outcome for reply in replies} == {RowOutcome.DONE}
    endings = [each.generation_id for each in await rig.inbox() if isinstance(each.entry, Ending)]
    assert endings == [row.generation_id for row in rows]
    assert await rig.pending() == {}


async def test_no_rows_are_no_call(rig: Rig) -> None:
    """An empty step answers with nothing."""
    assert await rig.broker.step([]) == []


async def test_a_step_tells_of_a_cancel(rig: Rig) -> None:
    """The owner learns it with its next row, and ends with what the choices had."""
    taken, text = await rig.start()
    await rig.broker.cancel(text.generation_id, caller=CALLER)
    assert await rig.step(text.row(taken.lease, 0, 1)) == RowReply(RowOutcome.OK, 1, True)
    end = StepRow(
        text.generation_id, taken.lease, 1, 0, text.chains[1], text.chains[1], b"",
        end=EndReason.CANCELLED, end_choices=(ChoiceEnd(0, "CANCELLED", 1),),
    )  # fmt: skip
    assert (await rig.step(end)).outcome is RowOutcome.DONE
    ending = (await rig.broker.read_log(text.generation_id))[-1]
    assert isinstance(ending, Ending)
    assert (ending.reason, ending.choice_ends) == (EndReason.CANCELLED, end.end_choices)


async def test_a_running_log_has_its_records_lifetime(rig: Rig) -> None:
    """Whichever goes first, the other would be of no use; the end shortens both."""
    taken, text = await rig.start(max_time_ms=3_600_000, window_ms=30_000)
    where = [keys.record(text.generation_id), keys.log(text.generation_id)]
    record_ms, log_ms = [await rig.client.pttl(key) for key in where]
    assert abs(record_ms - log_ms) < 1000
    assert record_ms > 3_600_000 + 30_000
    await rig.step(text.last_row(taken.lease, 0, 1))
    record_ms, log_ms = [await rig.client.pttl(key) for key in where]
    assert abs(record_ms - log_ms) < 1000
    assert 30_000 < record_ms <= 600_000
    assert WORKER not in (await rig.fields(text.generation_id)).values()
