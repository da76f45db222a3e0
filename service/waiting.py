"""The streams of this process whose generation no worker has begun: how many they may be, and what they are told."""

from collections.abc import Iterator
from contextlib import contextmanager

from contract.errors import Overloaded
from contract.messages import Job
from service.queues import Queues
from service.token_stream import TokenStream


class Waiting:
    """Counts jobs and tokens that wait for this process, and tells each stream its place when that has changed.

    Args:
        max_jobs: that may wait here.
        max_tokens: of prompts and outputs, that may wait here; a job that waits alone may have any number.
    """

    def __init__(self, queues: Queues, *, max_jobs: int, max_tokens: int) -> None:
        self._queues = queues
        self._max_jobs = max_jobs
        self._max_tokens = max_tokens
        self._jobs: dict[TokenStream, Job] = {}
        self._num_tokens = 0

    @contextmanager
    def hold(self, stream: TokenStream, job: Job, *, is_new: bool = True) -> Iterator[None]:
        """Count the stream while it waits, at most for the length of the block.

        Args:
            is_new: whether the job is to be queued for it; a reader of one that stands is never refused.

        Raises Overloaded.
        """
        if is_new:
            self._require_room(job)
        self._jobs[stream] = job
        self._num_tokens += job.num_tokens
        try:
            yield
        finally:
            self._drop(stream)

    def tell(self) -> None:
        """Tell every stream that still waits where it stands; forget the others."""
        self._forget_begun()
        for stream, job in self._jobs.items():
            if stream.place is not None:
                self.tell_one(stream, job, self._queues.num_own_ahead(job.model, job.job_class, stream.place))

    def tell_one(self, stream: TokenStream, job: Job, num_own: int) -> None:
        """Tell a stream where it stands, with so many of its own class before it."""
        ahead = self._queues.num_ahead(job.model, job.job_class, num_own)
        stream.tell_place(ahead, self._queues.wait_s(job.model, ahead))

    def _require_room(self, job: Job) -> None:
        if not self._is_full(job):
            return
        self._forget_begun()
        if not self._is_full(job):
            return
        pushback_s = self._queues.pushback_s(job.model)
        if len(self._jobs) >= self._max_jobs:
            raise Overloaded(len(self._jobs), self._max_jobs, pushback_s, where="at this gateway")
        raise Overloaded(self._num_tokens, self._max_tokens, pushback_s, unit="tokens", where="at this gateway")

    def _is_full(self, job: Job) -> bool:
        has_too_many_tokens = bool(self._jobs) and self._num_tokens + job.num_tokens > self._max_tokens
        return len(self._jobs) >= self._max_jobs or has_too_many_tokens

    def _forget_begun(self) -> None:
        for stream in [stream for stream in self._jobs if not stream.is_waiting]:
            self._drop(stream)

    def _drop(self, stream: TokenStream) -> None:
        if (job := self._jobs.pop(stream, None)) is not None:
            self._num_tokens -= job.num_tokens
