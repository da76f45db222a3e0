"""Carries tokens from Redis to the streams of this process: one reader of one inbox for all, and the log when in doubt.

The inbox is only a hint. A stream that hears nothing for SILENT_S compares itself with its record, since a lost last
row has no successor that would reveal it; and after every doubt about the inbox itself all streams read their logs.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import structlog

from contract import keys
from contract.broker import GRACE_MS, Broker
from contract.errors import BrokerDown, UnknownGeneration, Unreadable
from contract.log_pages import LogPage, LogPlace
from contract.messages import Job, MalformedMessage
from service.backoff import Backoff, until_answered
from service.cursor import FROM_START, Resume
from service.leaver import Leaver
from service.metrics import count_log_fill
from service.token_stream import RESUME_WAIT_S, TokenStream

BEAT_S = 0.2
BLOCK_MS = 1000
SILENT_S = 1.0
SWEEP_S = 0.25
PAUSE_A_STREAM_S = 100e-6  # a write costs the process some 60 us, whatever it holds
LEAST_PAUSE_S, MAX_PAUSE_S = 0.001, 0.025
MAX_FILLS = 16  # pages of logs read at the same time, so that a returning Redis is not buried

log = structlog.get_logger(__name__)


class Relay:
    """The streams of this process and what feeds them.

    Invariant: a stream that the record names this gateway a reader of is in `_streams` or with the leaver.
    """

    def __init__(self, broker: Broker, resume_wait_s: float = RESUME_WAIT_S) -> None:
        self.gateway_id = keys.new_id()
        self.describe: Callable[[], Mapping[str, str]] = dict  # what the beat says of this process
        self.leaver = Leaver(broker, self.gateway_id, self.is_read)
        self._broker = broker
        self._resume_wait_s = resume_wait_s
        self._streams: dict[str, list[TokenStream]] = {}
        self._epoch = ""  # of the inbox that `_last_id` is of
        self._last_id = "0"
        self._fills = asyncio.Semaphore(MAX_FILLS)

    def is_read(self, generation_id: str) -> bool:
        """Whether any stream of this process reads the generation."""
        return generation_id in self._streams

    @contextmanager
    def open(
        self, generation_id: str, caller: str, job: Job | None, resume: Resume = FROM_START
    ) -> Iterator[TokenStream]:
        """A stream that gets the generation's rows. Open it before submitting or attaching, so that none is missed.

        Leaving the block, in whatever way, hands an unfinished generation without readers over to the leaver.
        """
        stream = TokenStream(
            *(generation_id, caller, job, self._read_log, time.monotonic()),
            resume=resume,
            resume_wait_s=self._resume_wait_s,
        )
        self._streams.setdefault(generation_id, []).append(stream)
        try:
            yield stream
        finally:
            readers = self._streams[generation_id]
            readers.remove(stream)
            if not readers:
                del self._streams[generation_id]
            if stream.submission is not None and stream.cursor.ending is None:
                self.leaver.put_nowait(generation_id, stream.caller, stream.submission)

    def end_all(self, error: Exception) -> None:
        """End every stream with `error`."""
        for stream in self._all():
            stream.fail(error)

    async def beat(self) -> None:
        """Live on for ever; the beat keeps the inbox."""
        backoff = Backoff()
        while True:
            try:
                await self.beat_once()
            except BrokerDown:
                await backoff.wait()
            else:
                backoff.reset()
                await asyncio.sleep(BEAT_S)

    async def beat_once(self) -> None:
        """Beat; an inbox that had to be made anew has lost rows. Raises BrokerDown."""
        epoch = await self._broker.gateway_beat(self.gateway_id, self.describe())
        if epoch != self._epoch:
            self._epoch, self._last_id = epoch, "0"
            self._refill_all("inbox was made anew")

    async def read_inbox(self) -> None:
        """Hand the inbox' rows to their streams, for ever."""
        backoff = Backoff()
        doubt = ""
        while True:
            asked = self._last_id
            try:
                last_id, rows = await self._broker.read_inbox(self.gateway_id, asked, block_ms=BLOCK_MS)
            except BrokerDown:
                doubt = "the broker did not answer"
                await backoff.wait()
                continue
            except MalformedMessage as error:
                # Another version's worker, perhaps. The logs have it all; go on behind what cannot be read.
                log.error("inbox row cannot be read", error=str(error))
                doubt, self._last_id = "an inbox row could not be read", "$"
                await backoff.wait()
                continue
            if doubt:
                self._refill_all(doubt)
                doubt = ""
            backoff.reset()
            if self._last_id == asked:  # else the inbox was made anew meanwhile
                self._last_id = last_id
            now_s = time.monotonic()
            offered: set[TokenStream] = set()
            for row in rows:
                for stream in self._streams.get(row.generation_id, ()):
                    stream.offer(row.entry, now_s)
                    offered.add(stream)
            if offered:  # who got something writes it before the next rows are asked for
                await asyncio.sleep(pause_after_s(len(offered)))

    async def sweep(self) -> None:
        """Compare silent streams with their records, and close what no owner has ended in time, for ever."""
        backoff = Backoff()
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                await self.sweep_once()
            except BrokerDown:
                await backoff.wait()
            else:
                backoff.reset()

    async def sweep_once(self) -> None:
        """One round; what gets no rows is silent always. Raises BrokerDown."""
        now_s = time.monotonic()
        silent = [s for s in self._all() if s.has_record and (now_s - s.last_news_s >= SILENT_S or not s.gets_rows)]
        if not silent:
            return
        now_ms = await self._broker.now_ms()
        standings = await self._broker.standings([stream.generation_id for stream in silent])
        for stream, standing in zip(silent, standings, strict=True):
            stream.last_news_s = now_s
            stream.compare(standing)
            if standing is not None and self.gateway_id not in standing.readers:
                stream.gets_rows = False
        for stream, standing in zip(silent, standings, strict=True):
            if standing is not None and standing.is_overdue(now_ms, GRACE_MS):
                await self._broker.expire(stream.generation_id)
            if not stream.gets_rows and stream.cursor.ending is None:
                await self._seek_place(stream)

    async def _seek_place(self, stream: TokenStream) -> None:
        """Four gateways got the rows, and perhaps one of them has left or died; or the record has forgotten this one.

        It has with the tail of an append-only file, or if four others were alive while our inbox had expired. A
        generation whose record names no reader is cancelled, whoever reads it.
        """
        try:
            record = await self._broker.attach(stream.generation_id, caller=stream.caller, gateway_id=self.gateway_id)
        except UnknownGeneration:
            return  # the next round finds it gone
        except Unreadable as error:
            stream.fail(error)
            return
        finally:
            if not self.is_read(stream.generation_id) and stream.submission is not None:
                self.leaver.put_nowait(stream.generation_id, stream.caller, stream.submission)  # it ended meanwhile
        stream.gets_rows = record.gets_rows
        if record.gets_rows:
            stream.request_fill()  # for what came since the comparison

    def _refill_all(self, why: str) -> None:
        if self._streams:
            log.warning("streams read their logs", why=why, num_streams=sum(map(len, self._streams.values())))
        for stream in self._all():
            stream.request_fill()

    async def _read_log(self, generation_id: str, place: LogPlace) -> LogPage:
        async with self._fills:
            if place.is_first:
                count_log_fill()
            try:
                return await until_answered(lambda: self._broker.read_log_page(generation_id, place))
            except MalformedMessage as error:
                log.error("token log cannot be read", generation_id=generation_id, error=str(error))
                raise

    def _all(self) -> list[TokenStream]:
        return [stream for streams in self._streams.values() for stream in streams]


def pause_after_s(num_streams: int) -> float:
    """How long tokens may gather after a round that had some for so many streams; 0 for few.

    A message costs the same with one token in it or with ten, so a process that followed every step of many fast
    streams would do little else than write. This bounds it to 10,000 messages a second, and a token's wait to
    MAX_PAUSE_S; a few streams never wait.
    """
    pause_s = min(num_streams * PAUSE_A_STREAM_S, MAX_PAUSE_S)
    return pause_s if pause_s >= LEAST_PAUSE_S else 0.0
