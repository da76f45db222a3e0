"""A worker as the gateway sees one: it speaks the protocol through Broker, and a test says what it generates."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from contract import keys
from contract.broker import Broker, Delivered, RowReply, StepRow, Taken, new_lease
from contract.bundle import ModelBundle
from contract.errors import BrokerDown
from contract.messages import CHAIN_START, JOB_LEVEL, ChoiceEnd, EndReason, LoggedToken, encode_tokens
from tests.until import until

BEAT_S = 0.1


@dataclass(slots=True)
class Work:
    """One job in this worker's hands."""

    broker: Broker
    taken: Taken
    tokens: list[LoggedToken] = field(default_factory=list)
    chain: int = CHAIN_START

    async def say(self, *texts: str, ends: tuple[ChoiceEnd, ...] = ()) -> RowReply:
        """Append one token for each text, in one step."""
        row = self.row(*texts, ends=ends)
        (reply,) = await self.broker.step([row])
        return reply

    def row(self, *texts: str, ends: tuple[ChoiceEnd, ...] = ()) -> StepRow:
        """The step row of these tokens; they count as said."""
        start = len(self.tokens)
        return self._row_of([token_at(start + n, text) for n, text in enumerate(texts)], ends)

    async def say_in(self, *said: tuple[int, str], ends: tuple[ChoiceEnd, ...] = ()) -> RowReply:
        """Append one token for each (choice, text), in one step."""
        start = len(self.tokens)
        counts = Counter(token.choice for token in self.tokens)
        new = []
        for n, (choice, text) in enumerate(said):
            new.append(LoggedToken(choice, counts[choice], start + n, 100 + n, text))
            counts[choice] += 1
        (reply,) = await self.broker.step([self._row_of(new, ends)])
        return reply

    def _row_of(self, new: list[LoggedToken], ends: tuple[ChoiceEnd, ...]) -> StepRow:
        start, chain0 = len(self.tokens), self.chain
        body, self.chain = encode_tokens(new, chain0)
        self.tokens += new
        lease = self.taken.lease
        return StepRow(self.generation_id, lease, start, len(new), chain0, self.chain, body, choice_ends=ends)

    async def finish(self, reason: EndReason = EndReason.DONE, ends: Sequence[ChoiceEnd] | None = None) -> RowReply:
        """Close the log; by default choice 0 ended with EOS."""
        default = (ChoiceEnd(0, "EOS", len(self.tokens)),) if reason is EndReason.DONE else ()
        row = StepRow(
            *(self.generation_id, self.taken.lease, len(self.tokens), 0, self.chain, self.chain, b""),
            end=reason,
            end_choices=default if ends is None else tuple(ends),
        )
        (reply,) = await self.broker.step([row])
        return reply

    @property
    def generation_id(self) -> str:
        """Whose job it is."""
        return self.taken.job.generation_id

    @property
    def text(self) -> str:
        """All that was said."""
        return "".join(token.text for token in self.tokens)


def token_at(position: int, text: str) -> LoggedToken:
    """A token of choice 0 with an id that depends on its place."""
    return LoggedToken(0, position, position, 100 + position % 50, text)


class ScriptedWorker:
    """Beats by itself; takes jobs when the test says so."""

    def __init__(self, broker: Broker, models: dict[str, ModelBundle]) -> None:
        self.broker = broker
        self.models = models
        self.worker_ids = {model: keys.new_id() for model in models}
        self.is_beating = True
        self.says = {"job_level": str(JOB_LEVEL)}
        self._taken: dict[str, Work] = {}

    async def announce(self) -> None:
        """Publish every model."""
        for model, bundle in self.models.items():
            await self.broker.announce(model, bundle.digest, bundle.to_bytes())

    async def beat(self) -> None:
        """Beat for each model while `is_beating`."""
        while True:
            if self.is_beating:
                try:
                    for model, worker_id in list(self.worker_ids.items()):  # a test may add one meanwhile
                        await self.broker.worker_beat(worker_id, {"model": model, "state": "ready", **self.says})
                except BrokerDown:
                    pass
            await asyncio.sleep(BEAT_S)

    async def take(self, generation_id: str, model: str = "chat", job_class: str = "normal") -> Work:
        """This generation's job. Whatever else comes on the way is taken too, and kept for who asks for it."""

        async def read() -> bool:
            entries = await self.broker.read_jobs(self.worker_ids[model], model, job_class, count=64, block_ms=20)
            for entry in entries:
                if (work := await self._take(entry, model)) is not None:
                    self._taken[work.generation_id] = work
            return generation_id in self._taken

        await until(read, what=f"the job of {generation_id} arrives")
        return self._taken.pop(generation_id)

    async def adopt(self, generation_id: str, model: str = "chat") -> Work:
        """A job that was handed back, with what its log has."""

        async def adopt() -> bool:
            for entry in await self.broker.adopt(self.worker_ids[model], model, max_jobs=1, may_run_alone=True):
                if (work := await self._take(entry, model)) is not None:
                    self._taken[work.generation_id] = work
            return generation_id in self._taken

        await until(adopt, what=f"the job of {generation_id} is free")
        return self._taken.pop(generation_id)

    async def hand_back(self, work: Work, model: str = "chat") -> None:
        """Release a job for another to adopt."""
        released = await self.broker.release(work.taken.entry, worker_id=self.worker_ids[model], lease=work.taken.lease)
        assert released

    async def _take(self, entry: Delivered, model: str) -> Work | None:
        """None for a job that is gone or cancelled."""
        taken = await self.broker.take(entry, worker_id=self.worker_ids[model], lease=new_lease())
        if not isinstance(taken, Taken):
            return None
        work = Work(self.broker, taken)
        work.chain = taken.chain
        work.tokens = [token_at(n, "") for n in range(taken.num_tokens)]
        return work


@asynccontextmanager
async def scripted_worker(broker: Broker, models: dict[str, ModelBundle]) -> AsyncIterator[ScriptedWorker]:
    """A worker that beats for the length of the block."""
    worker = ScriptedWorker(broker, models)
    await worker.announce()
    beat = asyncio.create_task(worker.beat())
    try:
        yield worker
    finally:
        beat.cancel()
        await asyncio.gather(beat, return_exceptions=True)
