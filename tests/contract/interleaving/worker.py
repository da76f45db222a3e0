"""A simulated worker: the duties of protocol and product in small, one command at a time, tokens drawn at random."""

from contextlib import suppress
from dataclasses import dataclass, field

from contract import keys
from contract.broker import Broker, Delivered, RowOutcome, RowReply, StepRow, Taken
from contract.errors import BrokerDown
from contract.messages import (
    CHAIN_START,
    ChoiceEnd,
    EndReason,
    LoggedToken,
    TokenRow,
    decode_tokens,
    encode_tokens,
    extend_chain,
)
from tests.contract.interleaving.wire import Violation, Wire
from tests.contract.rig import MODEL

NUM_SLOTS = 4
PATIENCE_ROUNDS = 2
DEAD_AFTER_LOOKS = 3
FALSE_DEATH = 0.03


@dataclass(slots=True)
class Held:
    """A generation in this worker's engine. `num_logged` of its tokens are known to be in the log."""

    entry: Delivered
    lease: str
    length: int
    tokens: list[int]
    num_logged: int
    is_cancelled: bool = False

    def row(self) -> StepRow | None:
        """What is not known to be in the log; None if there is nothing to say."""
        chain0 = self._chain(self.num_logged)
        unsent = [
            LoggedToken(0, position, position, self.tokens[position], "")
            for position in range(self.num_logged, len(self.tokens))
        ]
        end = EndReason.CANCELLED if self.is_cancelled else EndReason.DONE
        is_last = self.is_cancelled or len(self.tokens) == self.length
        if not unsent and not is_last:
            return None
        body, chain1 = encode_tokens(unsent, chain0)
        return StepRow(
            self.entry.generation_id,
            self.lease,
            self.num_logged,
            len(unsent),
            chain0,
            chain1,
            body,
            end=end if is_last else None,
            end_choices=(ChoiceEnd(0, "EOS", len(self.tokens)),) if is_last else (),
        )

    def _chain(self, length: int) -> int:
        chain = CHAIN_START
        for token_id in self.tokens[:length]:
            chain = extend_chain(chain, 0, token_id)
        return chain


@dataclass(slots=True)
class Worker:
    """One worker process. `is_up` False is dead; `is_frozen` does nothing until it thaws."""

    broker: Broker
    wire: Wire
    worker_id: str
    reconciles: bool = True
    is_up: bool = True
    is_frozen: bool = False
    held: dict[str, Held] = field(default_factory=dict)
    taking: dict[Delivered, str] = field(default_factory=dict)  # entry -> the lease we ask for
    _num_leases: int = 0
    _rounds_unknown: dict[Delivered, int] = field(default_factory=dict)
    _watched: dict[str, tuple[str, int]] = field(default_factory=dict)  # other worker -> beat, looks it stood still

    async def tick(self) -> None:
        """Do one thing."""
        if self.is_frozen:
            if self.wire.rnd.random() < 0.05:
                self.is_frozen = False
                self.wire.counts["thaws"] += 1
            return
        self.generate()
        duties = [self.reconcile, self.detect]
        duties += [self.read] * 2 if self._num_free() else []
        duties += [self.take] * 3 if self.taking else []
        duties += [self.publish] * 4 if self.held else []
        with suppress(BrokerDown):
            if not self.wire.chaos or self.wire.rnd.random() < 0.3:  # in the calm nobody is to be taken for dead
                await self.beat()
            await self.wire.rnd.choice(duties)()

    async def beat(self) -> None:
        """Live on."""
        await self.wire.call(self.broker.worker_beat(self.worker_id, {"model": MODEL}))

    async def read(self) -> None:
        """Adopt first, then one new job."""
        if free := self._num_free():
            alone = not self.held and not self.taking
            adopt = self.broker.adopt(self.worker_id, MODEL, max_jobs=free, may_run_alone=alone)
            adopted = await self.wire.call(adopt)
            self._will_take(adopted)
        if self._num_free():
            job_class = self.wire.rnd.choices(keys.CLASSES, (1, 8, 1))[0]
            read = self.broker.read_jobs(self.worker_id, MODEL, job_class, count=1, block_ms=0)
            self._will_take(await self.wire.call(read))

    async def take(self) -> None:
        """Turn an entry into a lease, and read what the log has."""
        for entry, lease in tuple(self.taking.items()):
            taken = await self.wire.call(self.broker.take(entry, worker_id=self.worker_id, lease=lease))
            if isinstance(taken, Taken):
                tokens = await self._read_tokens(entry.generation_id)
                if len(tokens) == taken.num_tokens:
                    length = taken.job.stopping.max_new_tokens
                    self.held[entry.generation_id] = Held(entry, lease, length, tokens, len(tokens), taken.cancel)
                else:  # somebody has moved it on between the two calls; reconciliation hands it back if it is ours
                    self.wire.counts["log moved during take"] += 1
            del self.taking[entry]

    async def publish(self) -> None:
        """All news in one call. After a lost reply everything is news again."""
        rows = [row for held in self.held.values() if (row := held.row()) is not None]
        if not rows:
            return
        replies = await self.wire.call(self.broker.step(rows))
        leases = await self.broker.leases([row.generation_id for row in rows])
        for row, reply, (lease, _) in zip(rows, replies, leases, strict=True):
            if reply.outcome is RowOutcome.OK and lease != row.lease:
                raise Violation(f"accepted from {row.lease}, but the lease is {lease!r}")
            self._heed(row, reply)

    async def reconcile(self) -> None:
        """Release what is pending to us without our knowledge; drop what is no longer ours."""
        if not self.reconciles:
            return
        known = {held.entry for held in self.held.values()} | set(self.taking)
        pending = await self.wire.call(self.broker.own_pending(self.worker_id, MODEL))
        self._rounds_unknown = {e: self._rounds_unknown.get(e, 0) + 1 for e in pending if e not in known}
        for entry, rounds in self._rounds_unknown.items():
            if rounds >= PATIENCE_ROUNDS:
                self.wire.counts["reconciled"] += 1
                await self.wire.call(self.broker.release(entry, worker_id=self.worker_id, lease=None))
        held = tuple(self.held.values())
        leases = await self.wire.call(self.broker.leases([each.entry.generation_id for each in held]))
        for each, (lease, is_cancelled) in zip(held, leases, strict=True):
            each.is_cancelled |= is_cancelled
            if lease != each.lease:
                del self.held[each.entry.generation_id]

    async def detect(self) -> None:
        """Reap who stands still; in chaos now and then who does not."""
        beats = {each.worker_id: each.beat for each in await self.wire.call(self.broker.pool())}
        before, self._watched = self._watched, {}
        for worker_id in await self.wire.call(self.broker.consumers(MODEL)):
            if worker_id == self.worker_id:
                continue
            beat = beats.get(worker_id, "")
            last_beat, looks = before.get(worker_id, ("", 0))
            self._watched[worker_id] = (beat, looks + 1 if beat == last_beat else 0)
            if self._watched[worker_id][1] >= DEAD_AFTER_LOOKS or self.wire.happens(FALSE_DEATH):
                self.wire.counts["reaps"] += 1
                await self.wire.call(self.broker.reap(worker_id, beat, MODEL))

    async def drain(self) -> None:
        """Hand everything back, as far as the wire allows, and end."""
        for held in self.held.values():
            with suppress(BrokerDown):
                release = self.broker.release(held.entry, worker_id=self.worker_id, lease=held.lease)
                await self.wire.call(release)
                self.wire.counts["handed back"] += 1
        self.is_up = False

    def generate(self) -> None:
        """Perhaps draw tokens for each held generation; a second attempt draws others."""
        for held in self.held.values():
            for _ in range(self.wire.rnd.choice((0, 0, 1, 2, 3))):
                if len(held.tokens) < held.length:
                    held.tokens.append(self.wire.rnd.randrange(32_000))

    def _num_free(self) -> int:
        return NUM_SLOTS - len(self.held) - len(self.taking)

    def _will_take(self, entries: list[Delivered]) -> None:
        for entry in entries:
            self._num_leases += 1
            self.taking[entry] = f"{self.worker_id}-{self._num_leases}"

    async def _read_tokens(self, generation_id: str) -> list[int]:
        while True:
            with suppress(BrokerDown):
                log = await self.wire.call(self.broker.read_log(generation_id))
                return [token.id for row in log if isinstance(row, TokenRow) for token in decode_tokens(row.body)]

    def _heed(self, row: StepRow, reply: RowReply) -> None:
        self.wire.counts[f"row {reply.outcome}"] += 1
        held = self.held[row.generation_id]
        if reply.outcome in (RowOutcome.FENCED, RowOutcome.DONE):
            del self.held[row.generation_id]
            return
        held.num_logged = reply.num_tokens
        held.is_cancelled |= reply.cancel
