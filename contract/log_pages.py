"""A token log by the page: whoever follows a long one holds a part of it at a time."""

from dataclasses import dataclass, replace
from typing import Any, Self

from contract import keys
from contract.connection import answered
from contract.log_entries import parse_log_entry
from contract.messages import Ending, LogEntry, TokenRow

PAGE_BYTES = 256 * 1024  # about: a page has as many entries as the one before would have needed for so much
FIRST_ENTRIES, MAX_ENTRIES = 16, 512  # on a page
MAX_GROWTH = 4  # from page to page: entries of one log may differ
_END_ID = f"{2**64 - 1}-{2**64 - 1}"  # MAX_ID of lib.lua


@dataclass(frozen=True, slots=True)
class LogPlace:
    """Where a page begins.

    Attributes:
        start: the position from which the log is read.
        first: the id of the page's first entry, as XRANGE takes it.
        num_entries: of the page, at most.
    """

    start: int
    first: str
    num_entries: int = FIRST_ENTRIES

    @classmethod
    def at(cls, position: int) -> Self:
        """At the entry that holds the token at `position`, or the first mark there."""
        return cls(position, f"{position}-0")

    @property
    def is_first(self) -> bool:
        """Whether no page goes before it."""
        return not self.first.startswith("(")

    def after(self, last_id: str, num_bytes: int) -> Self:
        """Where the next page begins, after one of this many bytes."""
        fitting = self.num_entries * PAGE_BYTES // max(1, num_bytes)
        most = min(MAX_ENTRIES, self.num_entries * MAX_GROWTH)
        return replace(self, first=f"({last_id}", num_entries=max(1, min(fitting, most)))


@dataclass(frozen=True, slots=True)
class LogPage:
    """Some entries in order; `goes_on` is where the next page begins, None where the log ended for now."""

    entries: list[LogEntry]
    goes_on: LogPlace | None


async def read_page(client: Any, generation_id: str, place: LogPlace) -> LogPage:
    """The entries at `place` that hold a token at or after its start, the marks there, and the end if it is reached.

    Raises MalformedMessage, BrokerDown.
    """
    async with answered():
        raw = await client.xrange(keys.log(generation_id), min=place.first, count=place.num_entries)
    entries = [parse_log_entry(entry_id, fields) for entry_id, fields in raw]
    wanted = [each for each in entries if not (isinstance(each, TokenRow) and each.end <= place.start)]
    if len(raw) < place.num_entries or isinstance(entries[-1], Ending):  # behind whose id there is none
        return LogPage(wanted, None)
    num_bytes = sum(len(value) for _, fields in raw for value in fields.values())
    return LogPage(wanted, place.after(raw[-1][0].decode(), num_bytes))


async def read_ending(client: Any, generation_id: str) -> Ending | None:
    """The end of a log, without the rest of it. Raises MalformedMessage, BrokerDown."""
    async with answered():
        raw = await client.xrange(keys.log(generation_id), min=_END_ID, max=_END_ID)
    ending = parse_log_entry(*raw[0]) if raw else None
    return ending if isinstance(ending, Ending) else None
