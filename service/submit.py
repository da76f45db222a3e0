"""Job to generation record and jobs-stream entry, or attach; the same request_id always finds the same generation."""

import hashlib
import hmac
import time
from dataclasses import dataclass

from contract import keys
from contract.broker import Broker, Record, State, Submitted
from contract.errors import (
    BrokerDown,
    DeadlinePassed,
    DeadlineTooShort,
    NoWorker,
    Overloaded,
    QuotaExceeded,
    RequestIdReused,
    ServeError,
    UnknownGeneration,
)
from contract.messages import JOB_LEVEL, Job
from service.models import Models
from service.owned import OwnedCalls
from service.queues import Queues
from service.token_stream import TokenStream
from service.validate import Call

PATIENCE = 2.0  # a wait is only an estimate: it must be longer than what is left by this factor


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the herd may have waiting, and one caller under way; see `Broker.submit`."""

    max_waiting: int
    max_waiting_tokens: int
    max_held: int


class Submitter:
    """Puts jobs into the broker.

    Args:
        id_key: key of the hash from (caller, request_id) to generation id. Every gateway of a herd must have the same,
            or a retry at another gateway starts a second generation. It is no secret as long as every record holds
            its caller, which is compared; a key of one's own makes ids of guessable request_ids unguessable too.
    """

    def __init__(
        self,
        broker: Broker,
        models: Models,
        queues: Queues,
        calls: OwnedCalls,
        bounds: Bounds,
        *,
        gateway_id: str,
        id_key: str,
    ) -> None:
        self._broker = broker
        self._models = models
        self._queues = queues
        self._calls = calls
        self._bounds = bounds
        self._gateway_id = gateway_id
        self._id_key = id_key.encode()

    def generation_id(self, call: Call) -> str:
        """The call's own, a random one, or with a request_id the 128 bits that every gateway derives from it."""
        if call.generation_id is not None:
            return call.generation_id
        if call.request_id is None:
            return keys.new_generation_id()
        message = f"{len(call.caller)} {call.caller} {call.request_id}".encode()
        shard = keys.new_generation_id().partition(".")[0]
        return f"{shard}.{hmac.digest(self._id_key, message, 'sha256')[:16].hex()}"

    async def submit(self, call: Call, job: Job, stream: TokenStream | None = None) -> Submitted:
        """Queue the job, or attach to the generation that stands under its id.

        Args:
            stream: its reader here; without one nobody reads it until somebody attaches.

        Raises:
            NoWorker: nobody would take it, or an old worker might, and there is nothing to attach to.
            DeadlinePassed, DeadlineTooShort: the same for the caller's time.
            Overloaded, QuotaExceeded, RequestIdReused, UnknownGeneration, BrokerDown.
        """
        if job.model not in self._models.live:
            is_down = self._models.is_broker_down
            await self._require_standing(call, job, BrokerDown() if is_down else NoWorker(job.model))
        elif unknown_knobs := job.knobs_beyond(self._models.job_levels.get(job.model, JOB_LEVEL)):
            await self._require_standing(call, job, NoWorker(job.model, unknown_knobs=unknown_knobs))
        await self._require_time(call, job)
        task = self._calls.start(
            self._broker.submit(
                job,
                caller=call.caller,
                digest=digest(call),
                gateway_id="" if stream is None else self._gateway_id,
                window_ms=call.window_ms,
                max_waiting=self._bounds.max_waiting,
                max_waiting_tokens=self._bounds.max_waiting_tokens,
                max_held=self._bounds.max_held,
            )
        )
        if stream is not None:
            stream.submission = task
        try:
            submitted = await self._calls.wait(task)
        except RequestIdReused:
            raise RequestIdReused(call.request_id or "") from None  # the broker knows it by its generation
        except (Overloaded, QuotaExceeded) as error:
            error.retry_after_s = self._queues.pushback_s(job.model)
            raise
        if stream is not None:
            stream.has_record = True
            stream.gets_rows = submitted.gets_rows
            stream.place = submitted.place if submitted.state is State.QUEUED else None
        return submitted

    async def attach(self, stream: TokenStream) -> Record:
        """Become a reader of a generation that stands. Raises UnknownGeneration, BrokerDown."""
        task = self._calls.start(
            self._broker.attach(stream.generation_id, caller=stream.caller, gateway_id=self._gateway_id)
        )
        stream.submission = task
        record = await self._calls.wait(task)
        stream.has_record = True
        stream.gets_rows = record.gets_rows
        stream.place = record.place if record.state is State.QUEUED else None
        return record

    async def _require_time(self, call: Call, job: Job) -> None:
        """Queue nothing that its caller will not wait for: the measured wait tells before the job costs anything."""
        left_s = job.stopping.max_time_ms / 1000
        if call.ends_s is not None:
            rpc_left_s = call.ends_s - time.monotonic()
            if rpc_left_s <= 0:
                raise DeadlinePassed("before it was queued")
            if call.window_ms == 0:  # else the generation outlives the RPC
                left_s = min(left_s, rpc_left_s)
        num_ahead = self._queues.num_ahead(job.model, job.job_class)
        wait_s = self._queues.wait_s(job.model, num_ahead)
        if num_ahead and wait_s is not None and wait_s > PATIENCE * left_s:
            await self._require_standing(call, job, DeadlineTooShort(wait_s, left_s))

    async def _require_standing(self, call: Call, job: Job, otherwise: ServeError) -> None:
        """A generation that stands can be attached to where none can begin. Raises `otherwise`, BrokerDown."""
        if call.request_id is None or isinstance(otherwise, BrokerDown):
            raise otherwise
        try:
            await self._broker.record(job.generation_id, caller=call.caller)
        except UnknownGeneration:
            raise otherwise from None


def digest(call: Call) -> str:
    """What makes two requests the same: the generation as sent, without request_id, deadline and trace."""
    return hashlib.sha256(call.spec.SerializeToString(deterministic=True)).hexdigest()
