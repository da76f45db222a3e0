"""A simulated gateway: submits, relays rows to its streams, and goes back to the log whenever it has doubts."""

from contextlib import suppress
from dataclasses import dataclass, field

from contract import keys
from contract.broker import Broker, State
from contract.errors import BrokerDown, UnknownGeneration
from contract.messages import (
    CHAIN_START,
    Ending,
    EndReason,
    Job,
    JobSampling,
    JobStopping,
    LogEntry,
    TokenRow,
    decode_tokens,
    extend_chain,
)
from tests.contract.interleaving.wire import Violation, Wire
from tests.contract.rig import CALLER, MODEL

MAX_GENERATIONS = 30
MAX_LENGTH = 24


@dataclass(slots=True, eq=False)
class Stream:
    """What one client has been given of a generation.

    Attributes:
        may_be_behind: the server has lost a tail since the stream began, so the log may lack, or contradict, what
            was given.
        was_over: it had ended before that; the log may have gone on differently since.
        is_lost: the client was told so: DATA_LOSS, or that the generation is gone.
    """

    generation_id: str
    tokens: list[int] = field(default_factory=list)
    chains: list[int] = field(default_factory=lambda: [CHAIN_START])
    end: EndReason | None = None
    may_be_behind: bool = False
    was_over: bool = False
    is_lost: bool = False

    @property
    def is_over(self) -> bool:
        """Whether the client waits for nothing any more."""
        return self.is_lost or self.end is not None

    def offer(self, entry: LogEntry) -> bool:
        """Take a row if it continues what is here. Returns whether the log has to be read instead."""
        if isinstance(entry, Ending):
            return True
        if not isinstance(entry, TokenRow) or entry.t0 == entry.end:
            return False
        position = len(self.tokens)
        if entry.t0 > position or entry.chain0 != self.chains[entry.t0]:
            return True
        row = decode_tokens(entry.body)
        known = min(entry.end, position)
        if any(self.chains[token.position + 1] != token.chain for token in row if token.position < known):
            return True
        for token in row[max(0, position - entry.t0) :]:
            self._append(token.id)
        return False

    def fill(self, log: list[LogEntry]) -> None:
        """Compare with the log, and take what is new; a log that lost a tail and goes on may yet catch up."""
        logged = [token.id for row in log if isinstance(row, TokenRow) for token in decode_tokens(row.body)]
        end = log[-1].reason if log and isinstance(log[-1], Ending) else None
        is_behind = logged == self.tokens[: len(logged)] and len(logged) < len(self.tokens)
        if is_behind and end is None and self.may_be_behind:
            return
        if logged[: len(self.tokens)] != self.tokens:
            self.lose(f"given {self.tokens}, logged {logged}")
            return
        for token_id in logged[len(self.tokens) :]:
            self._append(token_id)
        self.end = end

    def lose(self, why: str) -> None:
        """Tell the client that its generation is lost. Raises Violation if the server has lost nothing."""
        if not self.may_be_behind:
            raise Violation(f"{self.generation_id}: {why}")
        self.is_lost = True

    def _append(self, token_id: int) -> None:
        self.tokens.append(token_id)
        self.chains.append(extend_chain(self.chains[-1], 0, token_id))


@dataclass(slots=True)
class Gateway:
    """One gateway process and its open streams. `given` has every stream that any gateway ever opened."""

    broker: Broker
    wire: Wire
    gateway_id: str
    given: list[Stream]
    sweeps: bool = True
    is_up: bool = True
    streams: dict[str, Stream] = field(default_factory=dict)
    left: list[Stream] = field(default_factory=list)  # whose clients may come back, to any gateway
    epoch: str = ""  # of its inbox
    _last_id: str = "0"

    async def tick(self) -> None:
        """Do one thing."""
        duties = [self.submit, self.inbox, self.inbox, self.inbox, self.inbox, self.beat, self.annoy]
        if self.wire.rnd.random() < 0.1:
            duties = [self.sweep]
        with suppress(BrokerDown):
            await self.wire.rnd.choice(duties)()

    async def submit(self) -> None:
        """A new generation; the client gives up only when it is sure that there is none."""
        if not self.wire.chaos or len(self.given) >= MAX_GENERATIONS:
            return
        rnd = self.wire.rnd
        generation_id = f"0.{rnd.getrandbits(128):032x}"
        stopping = JobStopping(max_new_tokens=rnd.randint(0, MAX_LENGTH), max_time_ms=3_600_000)
        job_class = rnd.choices(keys.CLASSES, (1, 8, 1))[0]
        job = Job(generation_id, MODEL, job_class, (1,), JobSampling(1.0, 0, 1.0, 7), stopping, True)
        window_ms = rnd.choice((0, 30_000))
        stream = self.streams[generation_id] = Stream(generation_id)
        self.given.append(stream)
        while True:
            with suppress(BrokerDown):
                submit = self.broker.submit(
                    job, caller=CALLER, digest="d", gateway_id=self.gateway_id, max_waiting=999, window_ms=window_ms
                )
                await self.wire.call(submit)
                return

    async def inbox(self) -> None:
        """Hand the next rows on."""
        reading = self.broker.read_inbox(self.gateway_id, self._last_id, block_ms=0)
        self._last_id, rows = await self.wire.call(reading)
        for row in rows:
            stream = self.streams.get(row.generation_id)
            if stream is not None and stream.offer(row.entry):
                await self._fill(stream)

    async def beat(self) -> None:
        """Live on; an inbox made anew has lost rows."""
        epoch = await self.wire.call(self.broker.gateway_beat(self.gateway_id))
        if epoch != self.epoch:
            self.epoch = epoch
            self.wire.counts["inboxes made anew"] += 1
            for stream in tuple(self.streams.values()):
                await self._fill(stream)

    async def sweep(self) -> None:
        """Compare every stream with its record."""
        if not self.sweeps:
            return
        streams = tuple(self.streams.values())
        standings = await self.wire.call(self.broker.standings([each.generation_id for each in streams]))
        for stream, standing in zip(streams, standings, strict=True):
            if standing is None:
                stream.lose("the record is gone")
                self.streams.pop(stream.generation_id, None)
            elif standing.num_tokens > len(stream.tokens) or standing.state is State.FINISHED:
                await self._fill(stream)

    async def annoy(self) -> None:
        """A client cancels, leaves, or comes back."""
        rnd = self.wire.rnd
        if not self.wire.chaos or rnd.random() > 0.3:
            return
        choice = rnd.random()
        if choice < 0.4 and self.left:
            await self.attach(self.left.pop())
        elif choice < 0.7 and self.streams:
            stream = self.streams.pop(rnd.choice(sorted(self.streams)))
            self.left.append(stream)
            self.wire.counts["leaves"] += 1
            await self.wire.call(self.broker.leave(stream.generation_id, gateway_id=self.gateway_id))
        elif choice < 0.8 and self.streams:
            self.wire.counts["cancels"] += 1
            stream = self.streams[rnd.choice(sorted(self.streams))]
            try:
                await self.wire.call(self.broker.cancel(stream.generation_id, caller=CALLER))
            except UnknownGeneration:
                stream.lose("the record is gone")
                del self.streams[stream.generation_id]

    async def attach(self, stream: Stream) -> None:
        """Go on with a client that had `stream` elsewhere."""
        self.streams[stream.generation_id] = stream
        while True:
            with suppress(BrokerDown):
                attach = self.broker.attach(stream.generation_id, caller=CALLER, gateway_id=self.gateway_id)
                try:
                    await self.wire.call(attach)
                except UnknownGeneration:
                    stream.lose("the record is gone")
                    del self.streams[stream.generation_id]
                    return
                break
        with suppress(BrokerDown):
            await self._fill(stream)

    async def _fill(self, stream: Stream) -> None:
        stream.fill(await self.wire.call(self.broker.read_log(stream.generation_id)))
        if stream.is_over:
            self.streams.pop(stream.generation_id, None)
