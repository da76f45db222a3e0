"""Stream entries and inbox rows as bytes: what the scripts write, read back into messages."""

from collections.abc import Mapping

from contract.messages import (
    MAX_COUNT,
    AttemptMark,
    Ending,
    EndReason,
    LogEntry,
    MalformedMessage,
    Times,
    TokenRow,
    decode_choice_ends,
)
from contract.outcomes import InboxRow

MAX_TIME_MS = 2**53  # what a script still counts exactly


def parse_log_entry(entry_id: bytes, fields: Mapping[bytes, bytes]) -> LogEntry:
    """One entry of a token log. Raises MalformedMessage.

    `T-0` holds tokens, `T-a` marks attempt a, MAX-MAX is the end (ARCHITECTURE.md, table of keys).
    """
    try:
        if b"c" in fields:
            row = _row_of(fields[b"f"], entry_id.partition(b"-")[0], fields[b"h"])
            return TokenRow(*row, fields[b"c"], decode_choice_ends(fields.get(b"x", b"")))
        if b"s" in fields:
            return AttemptMark(position=_count(entry_id.partition(b"-")[0]), attempt=_count(fields[b"s"]))
        return Ending(
            num_tokens=_count(fields[b"T"]),
            reason=EndReason(fields[b"e"].decode()),
            choice_ends=decode_choice_ends(fields[b"b"]),
            attempts=_count(fields[b"a"]),
            times=_parse_times(fields[b"m"].split()),
            error=fields[b"r"].decode(),
        )
    except Exception as error:
        raise MalformedMessage(f"log entry {entry_id!r}: {error}") from error


def parse_inbox_row(field: bytes, value: bytes) -> InboxRow:
    """One row of an inbox, `kind generation_id` -> `t0 T chain|payload`. Raises MalformedMessage."""
    try:
        head, _, payload = value.partition(b"|")
        t0, end, chain = head.split(b" ")
        return InboxRow(field[1:].decode(), _row_entry(field[:1], *_row_of(t0, end, chain), payload))
    except Exception as error:
        raise MalformedMessage(f"inbox row {field!r}: {error}") from error


def _row_entry(kind: bytes, t0: int, end: int, chain: int, payload: bytes) -> LogEntry:
    match kind:
        case b"T":
            return TokenRow(t0, end, chain, payload)
        case b"C":
            return TokenRow(end, end, chain, b"", decode_choice_ends(payload))
        case b"S":
            return AttemptMark(end, _count(payload))
        case b"E":
            reason, attempts, *times, length, rest = payload.split(b" ", 8)
            size = int(length)
            return Ending(
                num_tokens=end,
                reason=EndReason(reason.decode()),
                choice_ends=decode_choice_ends(rest[size:]),
                attempts=_count(attempts),
                times=_parse_times(times),
                error=rest[:size].decode(),
            )
        case _:
            raise MalformedMessage(f"inbox row of kind {kind!r}")


def _row_of(t0: bytes, end: bytes, chain: bytes) -> tuple[int, int, int]:
    """Where a row begins and ends, and the chain before it."""
    row = int(t0), int(end), int(chain)
    if not 0 <= row[0] <= row[1] <= MAX_COUNT or not 0 <= row[2] <= MAX_COUNT:
        raise ValueError(f"tokens {row[0]} to {row[1]} after chain {row[2]}")
    return row


def _count(text: bytes, most: int = MAX_COUNT) -> int:
    value = int(text)
    if not 0 <= value <= most:
        raise ValueError(f"{value} is no number from 0 to {most}")
    return value


def _parse_times(parts: list[bytes]) -> Times:
    accepted, taken, first, last, ended = (_count(part, MAX_TIME_MS) for part in parts)
    return Times(accepted, taken, first, last, ended)
