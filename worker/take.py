"""Makes a jobs entry ours: takes the lease, reads what the log already has, and hands the rest to the engine."""

import asyncio
import time
from functools import partial

import structlog

from contract.broker import Broker, Delivered, NotTaken, Taken, new_lease
from contract.bundle import ModelBundle
from contract.log_pages import LogPlace
from contract.messages import MalformedMessage, TokenRow, decode_tokens, to_logged
from worker.attempt import Attempt
from worker.bundle import token_pieces
from worker.cancels import check_leases
from worker.engine.sequence import GenerationRequest, SamplingParams, StoppingParams
from worker.engine_link import EngineLink
from worker.holdings import Holdings, Parting
from worker.metrics import count_poison, record_take
from worker.publish import Publisher
from worker.retry import until_answered
from worker.spans import record_queue

log = structlog.get_logger(__name__)

MAX_WHY = 200  # characters of a reason
TOKENS_A_TURN = 512  # of a log that is taken over, on the event loop; some 5 ms


class Taker:
    """Turns entries that were delivered to this worker into attempts in the engine."""

    def __init__(
        self,
        broker: Broker,
        worker_id: str,
        model: str,
        bundle: ModelBundle,
        holdings: Holdings,
        engine: EngineLink,
        publisher: Publisher,
    ) -> None:
        self._broker = broker
        self._worker_id = worker_id
        self._model = model
        self._eos_token_ids = bundle.eos_ids
        self._pieces = token_pieces(bundle)
        self._holdings = holdings
        self._engine = engine
        self._publisher = publisher

    async def take(self, entry: Delivered) -> None:
        """Take the entry and begin; nothing happens if it is another's by now, or nobody wants it."""
        self._holdings.taking.add(entry.entry_id)
        num_nudges = self._holdings.num_nudges
        lease = new_lease()  # the same for every repetition: a take whose reply was lost is known again
        try:
            taken, asked_s = await until_answered(lambda: self._ask(entry, lease))
            if isinstance(taken, Taken):
                await self._begin(taken, asked_s)
                if self._holdings.num_nudges != num_nudges:  # it may have been for this one, which was not held yet
                    await until_answered(lambda: check_leases(self._broker, self._holdings, self._publisher))
            elif taken in (NotTaken.POISON, NotTaken.DAMAGED):
                self._note_set_aside(entry, taken.value)
        except ValueError as error:  # MalformedMessage, or a parameter out of bounds: the job's fault, not ours
            await self._set_aside(entry, lease, str(error)[:MAX_WHY])
        finally:
            self._holdings.taking.discard(entry.entry_id)

    async def hand_back(self, entry: Delivered, lease: str | None = None) -> None:
        """Let another worker have the entry, without a charge. `lease` is None for one that was never taken."""
        await until_answered(lambda: self._broker.release(entry, worker_id=self._worker_id, lease=lease))

    async def _ask(self, entry: Delivered, lease: str) -> tuple[Taken | NotTaken, float]:
        """The broker's answer, and when it was asked: the answer's own time is a little later, however long it took."""
        asked_s = time.monotonic()
        return await self._broker.take(entry, worker_id=self._worker_id, lease=lease), asked_s

    async def _begin(self, taken: Taken, taken_s: float) -> None:
        """Continue where the log ends."""
        attempt = Attempt(taken, self._pieces, taken_s=taken_s)
        if taken.num_tokens > 0:
            await self._read_log(attempt)
        if len(attempt.tokens) != taken.num_tokens or attempt.chains[-1] != taken.chain:
            await self._settle(attempt)
            return
        if (earlier := self._holdings.of_generation(attempt.generation_id)) is not None:
            self._holdings.part(earlier, Parting.LEASE_LOST)  # it came back to us before we noticed that it had gone
        request = to_request(attempt, self._eos_token_ids)
        self._holdings.add(attempt)
        self._engine.add(request)  # before what nobody waits for
        log.info("taken", num_tokens=taken.num_tokens, **attempt.facts)
        record_take(attempt)
        if taken.cancel:
            self._publisher.cancel(attempt)
        if taken.attempt == 1:
            record_queue(attempt)

    async def _settle(self, attempt: Attempt) -> None:
        """The log is not what the record said at the take.

        Both are written together, and by the lease only: either it is another's by now, and the log read was, or both
        went back with a lost tail; or the log is damaged, for every worker. Raises MalformedMessage then.
        """
        ((lease, _),) = await until_answered(lambda: self._broker.leases([attempt.generation_id]))
        if lease == attempt.lease:
            counts = f"{len(attempt.tokens)} tokens, {attempt.taken.num_tokens} by the record"
            raise MalformedMessage(f"the log holds others than were written ({counts})")
        log.warning("lease lost while the log was read", **attempt.facts)
        await self.hand_back(attempt.taken.entry, attempt.lease)

    async def _read_log(self, attempt: Attempt) -> None:
        """Give the attempt its tokens some at a time: in between this process publishes for all that run."""
        place: LogPlace | None = LogPlace.at(0)
        while place is not None:
            page = await until_answered(partial(self._broker.read_log_page, attempt.generation_id, place))
            for entry in page.entries:
                if isinstance(entry, TokenRow):
                    attempt.resume([to_logged(token) for token in decode_tokens(entry.body)])
                    if entry.t0 // TOKENS_A_TURN != entry.end // TOKENS_A_TURN:
                        await asyncio.sleep(0)
            place = page.goes_on

    async def _set_aside(self, entry: Delivered, lease: str, why: str) -> None:
        """End a generation that this version cannot read: no other worker of this version could either."""
        if await until_answered(lambda: self._broker.dead.set_aside(entry.generation_id, lease=lease, why=why)):
            self._note_set_aside(entry, why)

    def _note_set_aside(self, entry: Delivered, why: str) -> None:
        log.error("job set aside", why=why, generation_id=entry.generation_id)
        count_poison(self._model)


def to_request(attempt: Attempt, eos_token_ids: tuple[int, ...]) -> GenerationRequest:
    """The attempt as the engine takes it, named by its lease; the deadline on this process' monotonic clock."""
    taken, job = attempt.taken, attempt.job
    sampling, stopping = job.sampling, job.stopping
    return GenerationRequest(
        generation_id=attempt.lease,
        prompt_ids=job.prompt_ids,
        sampling=SamplingParams(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=sampling.seed,
            min_p=sampling.min_p,
            typical_p=sampling.typical_p,
            repetition_penalty=sampling.repetition_penalty,
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
            logit_bias=sampling.logit_bias,
        ),
        stopping=StoppingParams(
            max_new_tokens=stopping.max_new_tokens,
            stop_strings=stopping.stop_strings,
            eos_token_ids=eos_token_ids,
            ignore_eos=stopping.ignore_eos,
            stop_token_ids=stopping.stop_token_ids,
            min_new_tokens=stopping.min_new_tokens,
        ),
        strip_leading_space=job.strip_leading_space,
        deadline_s=attempt.taken_s + (taken.deadline_ms - taken.now_ms) / 1000,
        num_choices=job.num_choices,
        logged=attempt.generated,
        num_top_logprobs=job.top_logprobs,
        wants_prompt_logprobs=job.prompt_logprobs and not attempt.has_echo,
    )
