"""Golden entries: what earlier processes have left in Redis is read as it was meant, and is still what we write."""

from dataclasses import MISSING, fields
from typing import Any

import pytest

from contract.log_entries import parse_inbox_row, parse_log_entry
from contract.messages import (
    JOB_LEVEL,
    KNOB_LEVELS,
    AttemptMark,
    Ending,
    EndReason,
    Job,
    LogEntry,
    MalformedMessage,
    Times,
    TokenRow,
    decode_choice_ends,
    decode_tokens,
    encode_choice_ends,
    encode_tokens,
)
from contract.outcomes import State
from contract.parsing import parse_record, parse_standing
from tests.contract.golden_play import (
    ADDED,
    CHOICE_END,
    ENDS,
    ERROR,
    FAILED,
    FULL_JOB,
    GENERATION,
    GOLDEN,
    JOB,
    LEASE,
    SCORED,
    TIME_MS,
    TOKENS,
    load,
    plain_golden,
    play,
)
from tests.contract.rig import CALLER, GATEWAY, WORKER, Rig

BODY, CHAIN = encode_tokens(TOKENS, 0)
DONE = Ending(3, EndReason.DONE, ENDS, 1, Times(TIME_MS, TIME_MS, TIME_MS, TIME_MS, TIME_MS))
GIVEN_UP = Ending(0, EndReason.FAILED, (), 1, Times(TIME_MS, TIME_MS, 0, 0, TIME_MS), ERROR)


async def test_we_write_what_is_recorded(rig: Rig) -> None:
    """Every message of today's scripts, byte for byte but for the times, and for fields that were added since."""
    played = await play(rig)
    assert sorted(played) == sorted(path.stem for path in GOLDEN.glob("*.json"))
    for name, value in played.items():
        assert without(value, ADDED.get(name, {})) == plain_golden(name), name


def without(value: Any, added: dict[str, str]) -> Any:
    """A hash, or a stream's entry, without these fields, which must be in it."""
    fields = value[1] if isinstance(value, list | tuple) and added else value
    assert all(fields[name] == content for name, content in added.items())
    kept = {k: v for k, v in fields.items() if k not in added} if added else fields
    return [value[0], kept] if fields is not value else kept


def test_the_recorded_job_is_read() -> None:
    """And written as it was."""
    assert Job.from_bytes(load("job")) == JOB
    assert JOB.to_bytes() == load("job")


def test_the_recorded_full_job_is_read() -> None:
    """One with every knob turned."""
    assert Job.from_bytes(load("job_full")) == FULL_JOB
    for record in (FULL_JOB, FULL_JOB.sampling, FULL_JOB.stopping):
        left = [each.name for each in fields(record) if getattr(record, each.name) == each.default]
        assert left == [], "a knob is not turned"


def test_every_knob_that_came_later_has_a_level() -> None:
    """So that no worker is given one that it would pass over; jobs of the first version have none."""
    later = [
        each.name
        for record in (FULL_JOB, FULL_JOB.sampling, FULL_JOB.stopping)
        for each in fields(record)
        if each.default is not MISSING and each.name not in ("logprobs", "stop_strings")
    ]
    assert sorted(later) == sorted(KNOB_LEVELS)
    assert JOB.knobs_beyond(0) == []
    assert sorted(FULL_JOB.knobs_beyond(0)) == sorted(KNOB_LEVELS)
    assert FULL_JOB.knobs_beyond(JOB_LEVEL) == []


def test_the_recorded_scored_token_is_read() -> None:
    """Its alternatives, likeliest first, each with its own text."""
    (token,) = decode_tokens(load("token_scored"))
    found = [(each.id, each.logprob, each.text) for each in token.top_logprobs]
    assert found == [(each.token_id, each.logprob, each.text) for each in SCORED.alternatives]


def test_a_job_may_gain_fields() -> None:
    """A newer gateway's job is read by an older worker."""
    body = load("job").replace(b'{"generation_id"', b'{"added":1,"generation_id"')
    body = body.replace(b'{"seed"', b'{"added":[2],"seed"').replace(b'"max_time_ms"', b'"added":3,"max_time_ms"')
    assert body.count(b"added") == 3
    assert Job.from_bytes(body) == JOB


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("attempt_mark", AttemptMark(0, 1)),
        ("token_row", TokenRow(0, 3, 0, BODY, (CHOICE_END,))),
        ("ending", DONE),
        ("ending_failed", GIVEN_UP),
    ],
)
def test_the_recorded_log_entries_are_read(name: str, entry: LogEntry) -> None:
    """Unknown fields are ignored."""
    entry_id, found = load(name)
    assert parse_log_entry(entry_id, found) == entry
    assert parse_log_entry(entry_id, found | {b"added": b"1"}) == entry


def test_the_recorded_tokens_are_read() -> None:
    """Choice, index, position, id, text, logprob and chain."""
    tokens = decode_tokens(load("token_row")[1][b"c"])
    found = [(t.choice, t.index, t.position, t.id, t.text, t.HasField("logprob")) for t in tokens]
    assert found == [(t.choice, t.index, t.position, t.token_id, t.text, t.logprob is not None) for t in TOKENS]
    assert tokens[0].logprob == -0.25
    assert [token.chain for token in tokens] == [673644231, 1743231544, CHAIN]
    assert CHAIN == 1717439499


def test_the_recorded_inbox_rows_are_read() -> None:
    """They say what the log says; a choice that ends before the others has a row of its own."""
    rows = [parse_inbox_row(field, value) for field, value in load("inbox_rows") if field != b"hello"]
    assert [(row.generation_id, row.entry) for row in rows] == [
        (GENERATION, AttemptMark(0, 1)),
        (GENERATION, TokenRow(0, 3, 0, BODY)),
        (GENERATION, TokenRow(3, 3, CHAIN, b"", (CHOICE_END,))),
        (GENERATION, DONE),
        (FAILED, AttemptMark(0, 1)),
        (FAILED, GIVEN_UP),
    ]


def test_the_recorded_choice_ends_are_read() -> None:
    """And written as they were; unknown fields are ignored."""
    body = load("choice_ends")
    assert decode_choice_ends(body) == ENDS
    assert encode_choice_ends(ENDS) == body
    assert decode_choice_ends(body.replace(b'{"choice"', b'{"added":1,"choice"')) == ENDS


def test_the_recorded_record_is_read() -> None:
    """By what attach and standings ask of it."""
    fields = load("record_running")
    names = (b"state", b"caller", b"T", b"chain", b"attempt", b"reason", b"job", b"accepted_ms", b"window", b"place")
    record = parse_record([*(fields.get(name) for name in names), 1])
    assert (record.state, record.caller, record.num_tokens, record.chain) == (State.RUNNING, CALLER, 3, CHAIN)
    assert (record.attempt, record.reason, record.job) == (1, None, JOB)
    assert (record.accepted_ms, record.window_ms) == (TIME_MS, 30_000)
    assert (fields[b"owner"], fields[b"lease"], fields[b"readers"]) == (
        WORKER.encode(),
        LEASE.encode(),
        GATEWAY.encode(),
    )
    finished = load("record_finished")
    asked = (b"state", b"T", b"chain", b"attempt", b"deadline", b"cancel", b"readers")
    standing = parse_standing([finished[name] for name in asked])
    assert standing is not None
    assert (standing.state, standing.num_tokens) == (State.FINISHED, 3)
    assert standing.readers == {GATEWAY}


def test_the_recorded_cancel_is_read() -> None:
    """Since when it is wanted; before, it was told without a time."""
    names = (b"state", b"T", b"chain", b"attempt", b"deadline", b"cancel", b"readers")
    cancelled = load("record_cancelled")
    for found, since_ms in ((cancelled, TIME_MS), (cancelled | {b"cancel": b"1"}, 1), (load("record_running"), 0)):
        standing = parse_standing([found[name] for name in names])
        assert standing is not None
        assert standing.cancel_ms == since_ms
        assert standing.is_overdue(TIME_MS + 2001, 2000)
        assert standing.is_overdue(TIME_MS + 2000, 2000) is (since_ms == 1)


@pytest.mark.parametrize(
    ("entry_id", "fields"),
    [
        (b"3-0", {}),
        (b"3-0", {b"c": b"x"}),
        (b"3-0", {b"c": b"x", b"f": b"zero", b"h": b"0"}),
        (b"3-0", {b"c": b"x", b"f": b"0", b"h": b"0", b"x": b"{"}),
        (b"x-1", {b"s": b"1"}),
        (b"9-9", {b"e": b"NEVER", b"T": b"1", b"b": b"", b"a": b"1", b"m": b"1 2 3 4 5", b"r": b""}),
        (b"9-9", {b"e": b"DONE", b"T": b"1", b"b": b"", b"a": b"1", b"m": b"1 2 3", b"r": b""}),
    ],
)
def test_foreign_log_entries_are_named(entry_id: bytes, fields: dict[bytes, bytes]) -> None:
    """Bytes that no version writes raise MalformedMessage, and nothing else."""
    with pytest.raises(MalformedMessage):
        parse_log_entry(entry_id, fields)


@pytest.mark.parametrize(
    "value", [b"", b"0 1", b"0 1 2", b"a b c|", b"0 1 2|NEVER", b"0 1 2|DONE 1 2", b"0 1 2|DONE 1 1 2 3 4 5 x "]
)
def test_foreign_inbox_rows_are_named(value: bytes) -> None:
    """Of every kind, known or not."""
    for kind in (b"E", b"Z"):
        with pytest.raises(MalformedMessage):
            parse_inbox_row(kind + GENERATION.encode(), value)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"null", b'{"v":1}', b'{"v":2}', b"\xff"])
def test_foreign_jobs_are_named(body: bytes) -> None:
    """A worker ends such a job instead of dying of it."""
    with pytest.raises(MalformedMessage):
        Job.from_bytes(body)
