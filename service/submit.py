"""Job to generation record and jobs-stream entry, or attach; the same request_id always finds the same generation."""

import hashlib
import hmac

from contract import keys
from contract.broker import Broker, Record, Submitted
from contract.errors import BrokerDown, NoWorker, RequestIdReused, UnknownGeneration
from contract.messages import Job
from service.models import Models
from service.owned import OwnedCalls
from service.token_stream import TokenStream
from service.validate import Call


class Submitter:
    """Puts jobs into the broker.

    Args:
        id_key: key of the hash from (caller, request_id) to generation id. Every gateway of a herd must have the same,
            or a retry at another gateway starts a second generation. It is no secret as long as every record holds
            its caller, which is compared; a key of one's own makes ids of guessable request_ids unguessable too.
    """

    def __init__(
        self, broker: Broker, models: Models, calls: OwnedCalls, *, gateway_id: str, id_key: str, max_waiting: int
    ) -> None:
        self._broker = broker
        self._models = models
        self._calls = calls
        self._gateway_id = gateway_id
        self._id_key = id_key.encode()
        self._max_waiting = max_waiting

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
            NoWorker: nobody would take it, and there is nothing to attach to.
            Overloaded, RequestIdReused, UnknownGeneration, BrokerDown.
        """
        if job.model not in self._models.live:
            await self._require_standing(call, job)
        task = self._calls.start(
            self._broker.submit(
                job,
                caller=call.caller,
                digest=digest(call),
                gateway_id="" if stream is None else self._gateway_id,
                max_waiting=self._max_waiting,
                window_ms=call.window_ms,
            )
        )
        if stream is not None:
            stream.submission = task
        try:
            submitted = await self._calls.wait(task)
        except RequestIdReused:
            raise RequestIdReused(call.request_id or "") from None  # the broker knows it by its generation
        if stream is not None:
            stream.deadline_ms = submitted.accepted_ms + job.stopping.max_time_ms
            stream.gets_rows = submitted.gets_rows
        return submitted

    async def attach(self, stream: TokenStream) -> Record:
        """Become a reader of a generation that stands. Raises UnknownGeneration, BrokerDown."""
        task = self._calls.start(
            self._broker.attach(stream.generation_id, caller=stream.caller, gateway_id=self._gateway_id)
        )
        stream.submission = task
        record = await self._calls.wait(task)
        stream.deadline_ms = record.accepted_ms + record.job.stopping.max_time_ms
        stream.gets_rows = record.gets_rows
        return record

    async def _require_standing(self, call: Call, job: Job) -> None:
        """Without a live worker a generation can be attached to, but none can begin."""
        if self._models.is_broker_down:
            raise BrokerDown
        if call.request_id is None:
            raise NoWorker(job.model)
        try:
            await self._broker.record(job.generation_id, caller=call.caller)
        except UnknownGeneration:
            raise NoWorker(job.model) from None


def digest(call: Call) -> str:
    """What makes two requests the same: the generation as sent, without request_id, deadline and trace."""
    return hashlib.sha256(call.spec.SerializeToString(deterministic=True)).hexdigest()
