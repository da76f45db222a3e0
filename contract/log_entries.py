"""Stream entries and inbox rows as bytes: what the scripts write, read back into messages."""

from collections.abc import Mapping

from contract.messages import (
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


def parse_log_entry(entry_id: bytes, fields: Mapping[bytes, bytes]) -> LogEntry:
    """One entry of a token log. Raises MalformedMessage.

    `T-0` holds tokens, `T-a` marks attempt a, MAX-MAX is the end (ARCHITECTURE.md, table of keys).
    """
    try:
        if b"c" in fields:
            return TokenRow(
                t0=int(fields[b"f"]),
                end=int(entry_id.partition(b"-")[0]),
                chain0=int(fields[b"h"]),
                body=fields[b"c"],
                choice_ends=decode_choice_ends(fields.get(b"x", b"")),
            )
        if b"s" in fields:
            return AttemptMark(position=int(entry_id.partition(b"-")[0]), attempt=int(fields[b"s"]))
        return Ending(
            num_tokens=int(fields[b"T"]),
            reason=EndReason(fields[b"e"].decode()),
            choice_ends=decode_choice_ends(fields[b"b"]),
            attempts=int(fields[b"a"]),
            times=_parse_times(fields[b"m"].split()),
            error=fields[b"r"].decode(),
        )
    except (KeyError, ValueError) as error:
        raise MalformedMessage(f"log entry {entry_id!r}: {error}") from error


def parse_inbox_row(field: bytes, value: bytes) -> InboxRow:
    """One row of an inbox, `kind generation_id` -> `t0 T chain|payload`. Raises MalformedMessage."""
    try:
        head, _, payload = value.partition(b"|")
        t0, end, chain = head.split(b" ")
        return InboxRow(field[1:].decode(), _row_entry(field[:1], int(t0), int(end), int(chain), payload))
    except ValueError as error:
        raise MalformedMessage(f"inbox row {field!r}: {error}") from error


def _row_entry(kind: bytes, t0: int, end: int, chain: int, payload: bytes) -> LogEntry:
    match kind:
        case b"T":
            return TokenRow(t0, end, chain, payload)
        case b"C":
            return TokenRow(end, end, chain, b"", decode_choice_ends(payload))
        case b"S":
            return AttemptMark(end, int(payload))
        case b"E":
            reason, attempts, *times, length, rest = payload.split(b" ", 8)
            size = int(length)
            return Ending(
                num_tokens=end,
                reason=EndReason(reason.decode()),
                choice_ends=decode_choice_ends(rest[size:]),
                attempts=int(attempts),
                times=_parse_times(times),
                error=rest[:size].decode(),
            )
        case _:
            raise MalformedMessage(f"inbox row of kind {kind!r}")


def _parse_times(parts: list[bytes]) -> Times:
    accepted, taken, first, last, ended = (int(part) for part in parts)
    return Times(accepted, taken, first, last, ended)
