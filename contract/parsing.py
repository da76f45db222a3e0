"""Replies of the scripts, parsed once at the edge. Each parser raises MalformedMessage, whatever is wrong."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from contract.errors import Unreadable
from contract.messages import EndReason, Job, MalformedMessage
from contract.outcomes import Delivered, NotTaken, Record, RowOutcome, RowReply, Standing, State, Submitted, Taken

_OUTCOMES = {b"OK": RowOutcome.OK, b"DONE": RowOutcome.DONE, b"FENCED": RowOutcome.FENCED, b"BACK": RowOutcome.BACK}


_Given = ParamSpec("_Given")
_Parsed = TypeVar("_Parsed")


def telling(parse: Callable[_Given, _Parsed]) -> Callable[_Given, _Parsed]:
    """What a record holds may be anything once it is damaged, and breaks a parser in any way there is."""

    @wraps(parse)
    def parsed(*args: _Given.args, **kwargs: _Given.kwargs) -> _Parsed:
        try:
            return parse(*args, **kwargs)
        except Exception as error:
            raise MalformedMessage(f"{parse.__name__}: {error}") from error

    return parsed


@contextmanager
def readable(what: str) -> Iterator[None]:
    """For who answers a caller: what is damaged is told as Unreadable, by the id of what it belongs to."""
    try:
        yield
    except MalformedMessage as error:
        raise Unreadable(what, str(error)) from error


@telling
def parse_record(answer: Sequence[Any]) -> Record:
    """What attach.lua answers."""
    _require_record(answer)
    state, caller, num_tokens, chain, attempt, reason, job, accepted_ms, window_ms, place, gets_rows = answer
    return Record(
        state=State(state.decode()),
        caller=caller.decode(),
        num_tokens=int(num_tokens),
        chain=int(chain),
        attempt=int(attempt),
        reason=EndReason(reason.decode()) if reason else None,
        job=Job.from_bytes(job),
        accepted_ms=int(accepted_ms),
        window_ms=int(window_ms),
        place=int(place or 0),
        gets_rows=bool(gets_rows),
    )


@telling
def parse_end(answer: Sequence[Any]) -> tuple[State, EndReason | None]:
    """What cancel.lua answers."""
    _require_record(answer)
    return State(answer[0].decode()), EndReason(answer[1].decode()) if answer[1] else None


@telling
def parse_submitted(answer: Sequence[Any], generation_id: str) -> Submitted | None:
    """What submit.lua answers where the generation stands; None for a refusal."""
    _require_record(answer[0])
    if answer[0] == b"QUEUED":
        position, place, now_ms = (int(each) for each in answer[1:])
        return Submitted(generation_id, False, State.QUEUED, 0, position, place, now_ms, True)
    if answer[0] == b"ATTACHED":
        num_tokens, accepted_ms, place, gets_rows = (int(each) for each in answer[2:])
        state = State(answer[1].decode())
        return Submitted(generation_id, True, state, num_tokens, 0, place, accepted_ms, bool(gets_rows))
    return None


@telling
def parse_deliveries(rows: Sequence[Sequence[Any]]) -> list[Delivered]:
    """What adopt.lua and own_pending.lua answer."""
    return [
        Delivered(row[0].decode(), row[1].decode(), row[2].decode(errors="replace"), row[3:] == [1]) for row in rows
    ]


@telling
def parse_new(stream: str, entries: Sequence[tuple[bytes, Mapping[bytes, bytes]]]) -> list[Delivered]:
    """What XREADGROUP answers for one stream. An entry that names no generation is dropped by its take."""
    named = ((entry_id, fields.get(b"g", b"")) for entry_id, fields in entries)
    return [Delivered(stream, entry_id.decode(), name.decode(errors="replace")) for entry_id, name in named]


@telling
def parse_take(answer: Sequence[Any], entry: Delivered, lease: str) -> Taken | NotTaken:
    """What take.lua answers."""
    match answer[0], answer[-1]:
        case b"OK", _:
            return _parse_taken(answer[1:], entry, lease)
        case b"LOST", _:
            return NotTaken.LOST
        case _, b"POISON":
            return NotTaken.POISON
        case _, b"DAMAGED":
            return NotTaken.DAMAGED
        case _:
            return NotTaken.DROPPED


def _parse_taken(answer: Sequence[Any], entry: Delivered, lease: str) -> Taken:
    attempt, num_tokens, chain, cancel, accepted_ms, deadline_ms, now_ms, body = answer
    job = Job.from_bytes(body)
    if job.generation_id != entry.generation_id:
        raise MalformedMessage(f"the job is that of {job.generation_id}")
    return Taken(
        job=job,
        lease=lease,
        entry=entry,
        attempt=int(attempt),
        num_tokens=int(num_tokens),
        chain=int(chain),
        cancel=bool(cancel),
        accepted_ms=int(accepted_ms),
        deadline_ms=int(deadline_ms),
        now_ms=int(now_ms),
    )


@telling
def parse_row_reply(answer: Sequence[Any]) -> RowReply:
    """What step.lua answers for one row."""
    outcome, num_tokens, cancel = answer
    return RowReply(_OUTCOMES[outcome], int(num_tokens), bool(cancel))


@telling
def parse_standing(answer: Sequence[bytes | None]) -> Standing | None:
    """HMGET state T chain attempt deadline cancel readers."""
    state, num_tokens, chain, attempt, deadline_ms, cancel_ms, readers = answer
    if state is None or num_tokens is None or chain is None or attempt is None:
        return None
    return Standing(
        *(State(state.decode()), int(num_tokens), int(chain), int(attempt), int(deadline_ms or 0), int(cancel_ms or 0)),
        readers=frozenset((readers or b"").decode().split(",")),
    )


def _require_record(answer: Any) -> None:
    """A script says so where the record is of another type, or was replaced by `take`, which knew no more of it."""
    if answer == b"UNREADABLE":
        raise MalformedMessage("its record was overwritten")


def parse_standing_or_none(answer: Sequence[bytes | None]) -> Standing | None:
    """The same, of one among many: none of them is to suffer for another."""
    try:
        return parse_standing(answer)
    except MalformedMessage:
        return None
