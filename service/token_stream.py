"""One RPC's stream of one generation: what arrives for it, what waits to be sent, and reading the log when in doubt."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from contract.broker import Standing, State
from contract.errors import LogBehind, PositionAhead, ServeError
from contract.log_pages import LogPage, LogPlace
from contract.messages import Job, LogEntry, MalformedMessage
from service import events
from service.cursor import FROM_START, BeyondEnd, Cursor, Disagreement, MissingMark, Piece, Place, Resume
from service.metrics import count_sent_tokens

MAX_BUFFER_BYTES = 256 * 1024  # for a slow reader; beyond it the buffer is dropped and the log is read later
MAX_MESSAGE_BYTES = 1024 * 1024  # of tokens joined in one message: clients take 4 MiB by default
RESUME_WAIT_S = 5.0  # for a log that has lost its tail to grow again
MAX_LATE_ROWS = 1024  # that come while the log is read

ReadLog = Callable[[str, LogPlace], Awaitable[LogPage]]


class RecordGone(Exception):
    """The record is gone, and this reader has no token of it: the job may be submitted again by who has it."""


class TokenStream:
    """Entries come in by `offer`, messages go out by `next_messages`; both on the event loop's thread.

    Invariant: what was given out, then `_buffer`, is what `cursor` has taken; `_sent` is the cursor's place after what
    was given out. While `_needs_fill`, nothing is taken from the inbox. Where `_goes_on` is, all before it is taken.

    Attributes:
        last_news_s: when something last came (monotonic clock); a silent stream compares itself with the record.
        has_record: whether its submission, or its attach, was answered: only then is a missing record a lost one.
        gets_rows: whether the inbox brings this generation's rows; where not, the log is polled.
        place: where it stands in its queue, as its submission told; None once it is known to be in none.
        submission: the call that makes this gateway a reader, once begun; whatever becomes of it, we have to leave.
    """

    def __init__(
        self,
        generation_id: str,
        caller: str,
        job: Job | None,
        read_log: ReadLog,
        now_s: float,
        *,
        resume: Resume = FROM_START,
        resume_wait_s: float = RESUME_WAIT_S,
    ) -> None:
        self.generation_id = generation_id
        self.caller = caller
        self.last_news_s = now_s
        self.has_record = False
        self.gets_rows = True
        self.place: int | None = None
        self.submission: asyncio.Future[Any] | None = None
        self.cursor = Cursor(job, resume)
        self._read_log = read_log
        self._resume_wait_s = resume_wait_s
        self._sent = Place()
        self._buffer: list[Piece] = []
        self._buffer_bytes = 0
        self._late: list[LogEntry] | None = None  # a list while the log is read
        self._needs_fill = job is None  # then it is attached to, and reads the log first
        self._goes_on: LogPlace | None = None  # with the next page of a log that is being read
        self._misses_mark = False
        self._error: Exception | None = None
        self._told_place: tuple[int, float | None] | None = None
        self._notice = b""  # of its place in the queue, not yet given out
        self._news = asyncio.Event()

    @property
    def is_finished(self) -> bool:
        """Whether everything was given out, the end included."""
        return self.cursor.ending is not None and not self._buffer

    @property
    def num_sent(self) -> int:
        """Tokens given out."""
        return max(0, self._sent.position - self.cursor.resume.position)

    @property
    def is_waiting(self) -> bool:
        """Whether no worker has begun, as far as is known here."""
        return self.cursor.attempt == 0 and self.cursor.ending is None

    @property
    def num_held(self) -> int:
        """Tokens that the reader has, from here or from before."""
        return max(self._sent.position, self.cursor.resume.position)

    @property
    def buffered_bytes(self) -> int:
        """What waits for a slow reader."""
        return self._buffer_bytes

    async def next_messages(self) -> list[bytes]:
        """Wait for something to send; everything that came, as few messages. [] only at the end.

        Raises LogBehind (the log lost what this reader has), PositionAhead, RecordGone, or what `fail` was given.
        """
        while True:
            if self._error is not None:
                raise self._error
            if self._needs_fill:
                await self._fill()
            notice, self._notice = self._notice, b""
            if self._buffer or self.cursor.ending is not None:
                return self._drain()
            if notice and self.is_waiting:
                return [notice]
            if not self._needs_fill:
                self._news.clear()
                await self._await_news()

    def offer(self, entry: LogEntry, now_s: float) -> None:
        """A row of the inbox."""
        self.last_news_s = now_s
        if self.cursor.ending is not None:
            return
        if self._late is not None:
            if len(self._late) < MAX_LATE_ROWS:
                self._late.append(entry)
            else:
                self._needs_fill = True
        elif not self._needs_fill:
            self._take_hint(entry)
            if self._buffer_bytes > MAX_BUFFER_BYTES:
                self._drop_buffer()

    def request_fill(self) -> None:
        """Read the log before anything else is given out: rows may have been lost."""
        self._needs_fill = True
        self._news.set()

    def compare(self, standing: Standing | None) -> None:
        """Hold what was taken against the record; None if there is none."""
        if self.cursor.ending is not None:
            return
        if standing is None:
            if self.num_held > 0:
                self.fail(LogBehind(self.num_held))
            else:
                self.fail(RecordGone())
            return
        if self._needs_fill or self._late is not None:
            return  # it is reading the log, for all that a slow reader may take
        if standing.attempt > self.cursor.attempt:
            self._misses_mark = True
            self.request_fill()
        elif standing.state is State.FINISHED or (standing.num_tokens, standing.chain) != (
            self.cursor.position,
            self.cursor.chain,
        ):
            self.request_fill()

    def tell_place(self, num_ahead: int, wait_s: float | None) -> None:
        """So many jobs go before it, which takes about so long. The reader is told where that is news."""
        if self._told_place is not None:
            told_ahead, told_wait_s = self._told_place
            if told_ahead == num_ahead and not _differs(told_wait_s, wait_s):
                return
        self._told_place = (num_ahead, wait_s)
        self._notice = events.queued(num_ahead, wait_s)
        self._news.set()

    def fail(self, error: Exception) -> None:
        """End the stream with `error`, now."""
        self._error = error
        self._news.set()

    def attach_to(self, job: Job) -> None:
        """The generation stood already, with this job; what it has so far is in its log."""
        self.cursor.job = job
        self.request_fill()

    def restart(self) -> None:
        """The generation stands anew, and nothing of it was given out."""
        assert self.num_held == 0, "the reader has tokens"
        self._sent = Place()
        self._error = None
        self._drop_buffer()

    async def _await_news(self) -> None:
        """Wait; a reader ahead of the log only while the log grows, with pauses of at most `resume_wait_s`."""
        if not self.cursor.is_ahead:
            await self._news.wait()
            return
        position = self.cursor.position
        try:
            async with asyncio.timeout(self._resume_wait_s):
                await self._news.wait()
        except TimeoutError:
            if self.cursor.position == position:
                raise self._ahead() from None

    def _ahead(self) -> ServeError:
        """The log is short of the resume position: who knows the chain there has had tokens that are lost."""
        resume = self.cursor.resume
        if resume.chain is None:
            return PositionAhead(resume.position, self.cursor.position)
        return LogBehind(resume.position)

    async def _fill(self) -> None:
        """Take a page of what the log has beyond the cursor; the last token taken is read again, and so compared.

        The next page is read when this one was given out: a slow reader holds one, however long the log is.
        """
        place = LogPlace.at(0) if self._misses_mark else self._goes_on or LogPlace.at(max(0, self.cursor.position - 1))
        self._needs_fill = self._misses_mark = False
        self._goes_on = None
        self._late = []
        try:
            try:
                page = await self._read_log(self.generation_id, place)
            except MalformedMessage:
                raise LogBehind(self.num_held) from None
            self._take_logged(page.entries, place.start)
            if page.goes_on is not None and not self._misses_mark:
                self._goes_on, self._needs_fill = page.goes_on, True
                return
            for entry in self._late:
                self._take_hint(entry)
        except BaseException:
            self._needs_fill = True
            raise
        finally:
            self._late = None

    def _take_logged(self, entries: Sequence[LogEntry], start: int) -> None:
        """Raises LogBehind if the log contradicts what was taken, or ends before it; PositionAhead.

        A log that goes on and is behind only lost its tail: the worker appends it again, and the chain decides then.
        """
        for entry in entries:
            try:
                self._push(self.cursor.take(entry))
            except MissingMark:
                if start == 0:
                    raise LogBehind(self.num_held) from None
                self._misses_mark = self._needs_fill = True
                return
            except BeyondEnd:
                raise self._ahead() from None
            except Disagreement:
                raise LogBehind(self.num_held) from None

    def _take_hint(self, entry: LogEntry) -> None:
        try:
            self._push(self.cursor.take(entry))
        except (Disagreement, MalformedMessage) as error:
            self._misses_mark |= isinstance(error, MissingMark)
            self.request_fill()
        except Exception as error:  # what one worker wrote ends no other stream
            self.fail(error)

    def _push(self, pieces: Sequence[Piece]) -> None:
        self._buffer += pieces
        for piece in pieces:
            self._buffer_bytes += len(piece.body)
        if pieces or self.cursor.ending is not None:  # an end that is an error has no message
            self._news.set()

    def _drop_buffer(self) -> None:
        self.cursor.go_back(self._sent)
        self._goes_on = None
        self._clear_buffer()
        self.request_fill()

    def _clear_buffer(self) -> None:
        self._buffer = []
        self._buffer_bytes = 0

    def _drain(self) -> list[bytes]:
        messages = _join(self._buffer)
        num_sent = self.num_sent
        self._sent = self.cursor.place
        count_sent_tokens(self.num_sent - num_sent)
        self._clear_buffer()
        return messages


def _differs(old_s: float | None, new_s: float | None) -> bool:
    """Whether a wait is worth another message: by more than a quarter."""
    if old_s is None or new_s is None:
        return old_s is not new_s
    return abs(new_s - old_s) > max(0.1, 0.25 * max(old_s, new_s))


def _join(pieces: Sequence[Piece]) -> list[bytes]:
    """Messages in order; neighbouring tokens are one message, up to MAX_MESSAGE_BYTES."""
    messages: list[bytes] = []
    run: list[bytes] = []
    run_bytes = 0
    for piece in pieces:
        if run and (not piece.is_tokens or run_bytes + len(piece.body) > MAX_MESSAGE_BYTES):
            messages.append(b"".join(run))
            run, run_bytes = [], 0
        if piece.is_tokens:
            run.append(piece.body)
            run_bytes += len(piece.body)
        else:
            messages.append(piece.body)
    if run:
        messages.append(b"".join(run))
    return messages
