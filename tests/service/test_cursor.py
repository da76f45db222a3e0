"""What a reader is given is a prefix of the log, however the inbox treats its rows."""

import asyncio
import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from contract.log_pages import LogPage, LogPlace
from contract.messages import (
    CHAIN_START,
    AttemptMark,
    ChoiceEnd,
    Ending,
    EndReason,
    LogEntry,
    LoggedToken,
    Times,
    TokenRow,
    encode_tokens,
)
from llamaherd.v1 import generation_pb2
from service.token_stream import TokenStream
from tests.contract.rig import make_job
from tests.service.gateways import Received

NUM_CHOICES = 3
PAGE_ENTRIES = 3
JOB = make_job("0.x")
JOB = replace(JOB, sampling=replace(JOB.sampling, n=NUM_CHOICES))


def make_log(sizes: list[int], marks: set[int]) -> list[LogEntry]:
    """A whole log: rows of these sizes, a new attempt before the rows whose numbers are in `marks`, and the end.

    Three choices take turns; each ends with its last token, the last one with the log.
    """
    entries: list[LogEntry] = [AttemptMark(0, 1)]
    position, chain, attempt, total = 0, CHAIN_START, 1, sum(sizes)
    ends = [ChoiceEnd(choice, "EOS", len(range(choice, total, NUM_CHOICES))) for choice in range(NUM_CHOICES)]
    for number, size in enumerate(sizes):
        if number in marks:
            attempt += 1
            entries.append(AttemptMark(position, attempt))
        places = range(position, position + size)
        tokens = [LoggedToken(n % NUM_CHOICES, n // NUM_CHOICES, n, 100 + n % 50, f"{n} ") for n in places]
        body, after = encode_tokens(tokens, chain)
        ended = tuple(ends[n % NUM_CHOICES] for n in places if total - NUM_CHOICES <= n < total - 1)
        entries.append(TokenRow(position, position + size, chain, body, ended))
        position, chain = position + size, after
    entries.append(Ending(position, EndReason.DONE, tuple(ends), attempt, Times(1, 2, 3, 4, 5)))
    return entries


class Log:
    """The part of a log that is written so far, read by small pages as Broker.read_log_page reads it."""

    def __init__(self, entries: list[LogEntry]) -> None:
        self.entries = entries
        self.num_written = 0

    async def read(self, generation_id: str, place: LogPlace) -> LogPage:
        """Entries that hold positions at or after the place's start; an entry's number stands for its id."""
        written = self.entries[: self.num_written]
        if place.is_first:
            first = next((n for n, e in enumerate(written) if not is_before(e, place.start)), len(written))
        else:
            first = int(place.first.removeprefix("("))
        page = written[first : first + PAGE_ENTRIES]
        following = LogPlace(place.start, f"({first + PAGE_ENTRIES}") if len(page) == PAGE_ENTRIES else None
        return LogPage([e for e in page if not is_before(e, place.start)], following)


def is_before(entry: LogEntry, position: int) -> bool:
    """Whether XRANGE from position-0 leaves the entry out, or the page does."""
    match entry:
        case TokenRow():
            return entry.end <= position
        case AttemptMark():
            return entry.position < position
        case Ending():
            return False


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 4), max_size=12),
    marks=st.sets(st.integers(0, 11), max_size=2),
    seed=st.integers(0, 2**32 - 1),
    fates=st.lists(st.sampled_from(["give", "give", "lose", "double", "late"]), min_size=30, max_size=30),
)
def test_every_token_comes_once_whatever_becomes_of_the_rows(
    sizes: list[int], marks: set[int], seed: int, fates: list[str]
) -> None:
    """Rows are lost, doubled or late, and the reader reads now and then: the stream is the log."""
    entries = make_log(sizes, marks)
    received = asyncio.run(relay(entries, fates, random.Random(seed)))

    assert received.text == "".join(f"{n} " for n in range(sum(sizes)))
    assert [m.started.attempt for m in received.messages if m.HasField("started")] == list(
        range(1, 2 + sum(n < len(sizes) for n in marks))
    )
    assert received.kinds[-2:] == ["choice_finished", "completed"]
    assert received.kinds.count("completed") == 1
    told = [m.choice_finished.choice for m in received.messages if m.HasField("choice_finished")]
    assert sorted(told) == list(range(NUM_CHOICES)), "each choice ends once"


async def relay(entries: list[LogEntry], fates: list[str], source: random.Random) -> Received:
    """Play the relay: each written entry reaches the stream, or not, and a sweep follows at the end."""
    log = Log(entries)
    stream = TokenStream("0.x", "anonymous", JOB, log.read, 0.0)
    received = Received([])
    late: list[LogEntry] = []
    for entry, fate in zip(entries, fates, strict=False):
        log.num_written += 1
        if fate == "late":
            late.append(entry)
        elif fate != "lose":
            for _ in range(2 if fate == "double" else 1):
                stream.offer(entry, 0.0)
        if late and source.random() < 0.5:
            stream.offer(late.pop(source.randrange(len(late))), 0.0)
        if source.random() < 0.5:
            await read_ready(stream, received)
    stream.request_fill()  # as the silent sweep would
    while not stream.is_finished:
        await read_ready(stream, received)
    return received


async def read_ready(stream: TokenStream, received: Received) -> None:
    """Take what is there, without waiting for more."""
    reading = asyncio.ensure_future(stream.next_messages())
    for _ in range(10):
        await asyncio.sleep(0)
    if not reading.done():
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        return
    for body in reading.result():
        received.add(generation_pb2.GenerateResponse.FromString(body))
