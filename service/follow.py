"""From a call to a stream of its generation: validate and submit, or attach; then whatever the relay brings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from contract.broker import Broker
from contract.errors import UnknownGeneration
from contract.messages import Ending, Job
from service import events, spans
from service.admission import Admission
from service.cursor import Resume
from service.models import Models
from service.relay import Relay
from service.submit import Submitter
from service.token_stream import RecordGone, TokenStream
from service.validate import Call, validate
from service.waiting import Waiting

log = structlog.get_logger(__name__)


class Followed:
    """A generation that stands, and one RPC's stream of it.

    Args:
        call: what was asked for, if this RPC began the generation; then a record that is lost can be made again.
    """

    def __init__(self, call: Call | None, job: Job, stream: TokenStream, submitter: Submitter) -> None:
        self.job = job
        self._call = call
        self._stream = stream
        self._submitter = submitter

    @property
    def is_finished(self) -> bool:
        """Whether every message was given out, the last one included."""
        return self._stream.is_finished

    @property
    def is_complete(self) -> bool:
        """Whether the last message that was given out was `completed`: it is finished, and not by an error."""
        ending = self._stream.cursor.ending
        return self.is_finished and ending is not None and events.is_ok(ending)

    @property
    def num_tokens(self) -> int:
        """Tokens given out so far."""
        return self._stream.num_sent

    @property
    def ending(self) -> Ending:
        """How it ended, once it is finished. Raises what the RPC then ends with, unless that is OK."""
        ending = self._stream.cursor.ending
        assert ending is not None, "the generation goes on"
        if (error := events.error_of(ending, self.job.generation_id)) is not None:
            raise error
        return ending

    def accepted(self) -> bytes:
        """The first message."""
        return events.accepted(self.job)

    async def next_messages(self) -> list[bytes]:
        """The next messages, serialized; waits for one. Raises ServeError."""
        try:
            return await self._stream.next_messages()
        except RecordGone:
            if self._call is None:
                raise UnknownGeneration(self.job.generation_id) from None
            log.warning("record was lost; the job is submitted again")
            await self._submitter.submit(self._call, self.job, self._stream)
            self._stream.restart()
            return []


class Follower:
    """Starts generations, or attaches to those that stand, and follows them."""

    def __init__(
        self,
        broker: Broker,
        models: Models,
        relay: Relay,
        submitter: Submitter,
        admission: Admission,
        waiting: Waiting,
        *,
        max_log_bytes: int,
    ) -> None:
        """Args: max_log_bytes: see `validate`."""
        self._broker = broker
        self._models = models
        self._relay = relay
        self._submitter = submitter
        self._admission = admission
        self._waiting = waiting
        self._max_log_bytes = max_log_bytes

    @asynccontextmanager
    async def follow(self, call: Call, *, has_place: bool = False) -> AsyncIterator[Followed]:
        """The generation that `call` asks for. Leaving the block gives it up, if no other reader is there.

        Raises ServeError.

        Args:
            has_place: the RPC was let in already, for longer.
        """
        with self._admission.enter(has_place=has_place):
            job = await self.check(call)
            with (
                self._relay.open(job.generation_id, call.caller, job) as stream,
                self._waiting.hold(stream, job),
            ):
                submitted = await self._submitter.submit(call, job, stream)
                if submitted.attached:
                    job = await self._job_that_stands(call, job)
                    stream.attach_to(job)
                elif submitted.position:
                    self._waiting.tell_one(stream, job, submitted.position)
                spans.describe_job(job)
                yield Followed(call, job, stream, self._submitter)

    @asynccontextmanager
    async def attach(
        self, generation_id: str, caller: str, resume: Resume, *, has_place: bool = False
    ) -> AsyncIterator[Followed]:
        """A generation that stands, from a position on. Leaving the block gives it up as leaving `follow` does.

        Raises ServeError.

        Args:
            has_place: as for `follow`.
        """
        with (
            self._admission.enter(has_place=has_place),
            self._relay.open(generation_id, caller, None, resume) as stream,
        ):
            structlog.contextvars.bind_contextvars(generation_id=generation_id)
            record = await self._submitter.attach(stream)
            stream.attach_to(record.job)
            spans.describe_job(record.job)
            with self._waiting.hold(stream, record.job, is_new=False):
                yield Followed(None, record.job, stream, self._submitter)

    async def start(self, call: Call) -> Job:
        """The generation that `call` asks for, which nobody reads yet. Raises ServeError."""
        with self._admission.enter():
            job = await self.check(call)
            if (await self._submitter.submit(call, job)).attached:
                job = await self._job_that_stands(call, job)
            spans.describe_job(job)
            return job

    async def check(self, call: Call) -> Job:
        """The job that `call` asks for; nothing is queued. Raises ServeError."""
        generation_id = self._submitter.generation_id(call)
        structlog.contextvars.bind_contextvars(generation_id=generation_id)
        return await validate(call, generation_id, self._models, max_log_bytes=self._max_log_bytes)

    async def _job_that_stands(self, call: Call, job: Job) -> Job:
        """The first call's job: its seed and its model's defaults then are what the tokens were made with."""
        try:
            return (await self._broker.record(job.generation_id, caller=call.caller)).job
        except UnknownGeneration:
            return job  # gone since; the stream finds out, and submits it again
