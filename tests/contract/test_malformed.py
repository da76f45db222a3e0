"""Whatever stands in Redis, a parser gives a message or raises MalformedMessage: anything else would end a process."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from contract import keys, parsing
from contract.chat import MAX_TURNS, parse_begun, parse_session
from contract.log_entries import parse_inbox_row, parse_log_entry
from contract.messages import (
    CHAIN_START,
    Alternative,
    ChoiceEnd,
    Ending,
    Job,
    JobSampling,
    LoggedToken,
    MalformedMessage,
    TokenRow,
    decode_choice_ends,
    decode_tokens,
    encode_choice_ends,
    encode_tokens,
)
from contract.outcomes import Delivered, Taken
from tests.contract.rig import make_job

GENERATION = f"0.{'a' * 32}"  # the same every time, as the examples are
FULL_SAMPLING = JobSampling(0.7, 40, 0.9, 7, min_p=0.1, logit_bias=((5, -1.0), (9, 2.5)), n=3)
JOB = dataclasses.replace(
    make_job(GENERATION), sampling=FULL_SAMPLING, echo=True, trace_context={"traceparent": "00-1"}
)
ENDS = encode_choice_ends([ChoiceEnd(0, "EOS", 3), ChoiceEnd(1, "STOP_STRING", 2, "\n\n", "held")])
TOKENS, CHAIN = encode_tokens(
    [LoggedToken(0, n, n, 40 + n, "text ", -0.5, (Alternative(3, -1.0, "é"),)) for n in range(3)], CHAIN_START
)
GOOD_ENTRIES: list[tuple[bytes, dict[bytes, bytes]]] = [
    (b"3-0", {b"f": b"0", b"h": b"0", b"c": TOKENS, b"x": ENDS}),
    (b"3-2", {b"s": b"2", b"w": b"worker"}),
    (b"9-9", {b"e": b"DONE", b"T": b"3", b"b": ENDS, b"a": b"1", b"m": b"1 2 3 4 5", b"r": b""}),
]
GOOD_ROWS: list[tuple[bytes, bytes]] = [
    (b"T" + GENERATION.encode(), b"0 3 0|" + TOKENS),
    (b"C" + GENERATION.encode(), b"3 3 7|" + ENDS),
    (b"S" + GENERATION.encode(), b"3 3 7|2"),
    (b"E" + GENERATION.encode(), b"3 3 7|DONE 1 1 2 3 4 5 5 error" + ENDS),
]
RECORD = [b"running", b"caller", b"3", b"7", b"1", b"", JOB.to_bytes(), b"1", b"0", b"5", 1]
TAKEN = [b"OK", 1, b"3", b"7", b"", b"1", b"60000", 5, JOB.to_bytes()]
SESSION = [
    *(b"setup", b"setup", b"trace", b"", b"first", b"0", b"next", b"2", b"open", b"1", b"shown", b"3", b"stop", b"1"),
    *(b"dropped", b"0", b"begun_ms", b"1", b"ttl", b"60000", b"bytes", b"4", b"u:0", b"a", b"a:0", b"b", b"g:0", b"c"),
    *(b"u:1", b"d", b"g:1", b"e"),
]
ENTRY = Delivered("q", "1-1", GENERATION)
DEEP = b"[" * 100_000

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
REPLIES = st.recursive(
    st.none() | st.integers() | st.binary(max_size=8), lambda inner: st.lists(inner, max_size=12), max_leaves=20
)


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """The good bytes with a stretch of them replaced: by nothing, by others, or by themselves moved."""
    start = draw(st.integers(0, len(good)))
    stop = draw(st.integers(start, min(len(good), start + 40)))
    put = draw(st.binary(max_size=12) | st.sampled_from([good[:20], b"-1", b"99999999999999999999", b"1e999", b"\xff"]))
    return good[:start] + put + good[stop:]


@st.composite
def another_json(draw: st.DrawFn, good: bytes) -> bytes:
    """The good document with one value in it, at any depth, replaced by any other."""
    document = json.loads(good)
    at: Any = document
    while True:
        key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else list(range(len(at)))))
        if not isinstance(at[key], (dict, list)) or not at[key] or draw(st.booleans()):
            at[key] = draw(VALUES)
            return json.dumps(document).encode()
        at = at[key]


def read(parse: Callable[..., Any], *what: Any) -> Any:
    """What it gives, or None where it names the message malformed. Anything else that it raises fails the test."""
    try:
        return parse(*what)
    except MalformedMessage:
        return None


@given(st.binary(max_size=200) | damaged(JOB.to_bytes()) | another_json(JOB.to_bytes()))
@example(DEEP)
@example(JOB.to_bytes().replace(b'"seed":7', b'"seed":1e999'))
@example(JOB.to_bytes().replace(b'"n":3', b'"n":1000000000000'))
def test_a_job_is_whole_or_named(body: bytes) -> None:
    """One that is read can be written, weighed and compared: every field has its type."""
    job = read(Job.from_bytes, body)
    if job is not None:
        assert read(Job.from_bytes, job.to_bytes()) == job
        assert job.num_tokens >= 0
        assert job.knobs_beyond(0) is not None


@given(st.binary(max_size=80) | damaged(ENDS) | another_json(ENDS))
@example(DEEP)
def test_choice_ends_are_whole_or_named(body: bytes) -> None:
    """As the public message takes them."""
    for end in read(decode_choice_ends, body) or ():
        assert (type(end.reason), type(end.text.encode())) == (str, bytes)
        assert 0 <= max(end.choice, end.num_tokens) < 2**32


@given(st.binary(max_size=80) | damaged(TOKENS))
def test_tokens_are_whole_or_named(body: bytes) -> None:
    """Protobuf's own error stays inside."""
    for token in read(decode_tokens, body) or ():
        assert token.id >= 0


@given(
    st.binary(max_size=24) | st.sampled_from([b"-5-0", b"18446744073709551615-1", b"3"]),
    st.dictionaries(st.sampled_from([b"f", b"h", b"c", b"x", b"s", b"e", b"T", b"b", b"a", b"m", b"r"]), st.binary()),
)
def test_any_log_entry_is_whole_or_named(entry_id: bytes, fields: dict[bytes, bytes]) -> None:
    """Of random fields."""
    read(parse_log_entry, entry_id, fields)


@given(st.sampled_from(GOOD_ENTRIES), st.data())
def test_a_damaged_log_entry_is_whole_or_named(good: tuple[bytes, dict[bytes, bytes]], data: st.DataObject) -> None:
    """Its positions are positions, so nobody looks for them where there is nothing."""
    entry_id, fields = good
    name = data.draw(st.sampled_from(sorted(fields)))
    changed = {**fields, name: data.draw(damaged(fields[name]))}
    entry = read(parse_log_entry, data.draw(st.just(entry_id) | damaged(entry_id)), changed)
    if isinstance(entry, TokenRow):
        assert 0 <= entry.t0 <= entry.end < 2**32
    if isinstance(entry, Ending):
        assert min(entry.num_tokens, entry.attempts, *dataclasses.astuple(entry.times)) >= 0


@given(st.sampled_from(GOOD_ROWS), st.data())
def test_a_damaged_inbox_row_is_whole_or_named(good: tuple[bytes, bytes], data: st.DataObject) -> None:
    """Likewise."""
    field, value = good
    row = read(parse_inbox_row, data.draw(st.just(field) | damaged(field)), data.draw(damaged(value)))
    if row is not None and isinstance(row.entry, TokenRow):
        assert 0 <= row.entry.t0 <= row.entry.end < 2**32


@given(REPLIES)
def test_any_reply_is_whole_or_named(reply: Any) -> None:
    """Also what no script answers."""
    for parse in (parsing.parse_record, parsing.parse_row_reply, parsing.parse_standing, parsing.parse_deliveries):
        read(parse, reply)
    read(parsing.parse_take, reply, ENTRY, "lease")
    read(parsing.parse_submitted, reply, GENERATION)
    read(parsing.parse_new, "q", reply)
    read(parsing.parse_end, reply)
    read(parse_session, reply)
    read(parse_begun, reply, 0)
    parsing.parse_standing_or_none(reply)


@given(st.sampled_from(range(1, len(SESSION), 2)), st.data())
@example(SESSION.index(b"next") + 1, None).via("a gateway would count to it")
def test_a_damaged_conversation_is_whole_or_named(part: int, data: st.DataObject | None) -> None:
    """With one field changed."""
    changed = b"9" * 30 if data is None else data.draw(damaged(SESSION[part]) | st.binary(max_size=12))
    session = read(parse_session, [*SESSION[:part], changed, *SESSION[part + 1 :]])
    if session is not None:
        assert 0 <= session.first_turn <= session.next_turn <= session.first_turn + MAX_TURNS + 1


def test_a_good_conversation_is_read() -> None:
    """So that the test above damages something."""
    session = parse_session(SESSION)
    assert session.open is not None
    assert (len(session.turns), session.open.number, session.open.shown) == (1, 1, 3)


@pytest.mark.parametrize("part", range(len(TAKEN)))
@pytest.mark.parametrize("value", [None, b"", b"\xff", b"-", [b"1"], "job"])
def test_a_damaged_record_is_named(part: int, value: Any) -> None:
    """By who takes the job, and by who attaches to it; only a flag may be anything."""
    assert isinstance(read(parsing.parse_take, TAKEN, ENTRY, "lease"), Taken)
    assert read(parsing.parse_record, RECORD) is not None
    taken = read(parsing.parse_take, [*TAKEN[:part], value, *TAKEN[part + 1 :]], ENTRY, "lease")
    assert not isinstance(taken, Taken) or part == 4
    read(parsing.parse_record, [*RECORD[:part], value, *RECORD[part + 1 :]])


def test_another_generations_job_is_named() -> None:
    """Its tokens would go into the wrong log, or into none."""
    with pytest.raises(MalformedMessage, match="the job is that of"):
        parsing.parse_take(TAKEN, Delivered("q", "1-1", keys.new_generation_id()), "lease")
