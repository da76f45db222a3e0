"""Short forms for the contract tests: one job, its worker and its reader, and looks behind the broker's back."""

from dataclasses import dataclass, field
from typing import Any

from contract import keys
from contract.broker import Broker, Delivered, InboxRow, RowReply, StepRow, Submitted, Taken, new_lease
from contract.messages import (
    CHAIN_START,
    ChoiceEnd,
    EndReason,
    Job,
    JobSampling,
    JobStopping,
    LoggedToken,
    TokenRow,
    decode_tokens,
    encode_tokens,
    extend_chain,
)

MODEL = "demo"
CLASS = "normal"
QUEUE = keys.queue(MODEL, CLASS)
CALLER = "caller-a"
GATEWAY = "gateway-a"
WORKER = "worker-a"
OTHER_WORKER = "worker-b"


def make_job(generation_id: str, *, max_time_ms: int = 60_000, job_class: str = CLASS) -> Job:
    """A small valid job."""
    return Job(
        generation_id=generation_id,
        model=MODEL,
        job_class=job_class,
        prompt_ids=(1, 15043),
        sampling=JobSampling(temperature=0.7, top_k=40, top_p=0.9, seed=7),
        stopping=JobStopping(max_new_tokens=64, max_time_ms=max_time_ms, stop_strings=("\n\n",)),
        strip_leading_space=True,
    )


@dataclass(slots=True)
class Text:
    """The tokens one generation will have; position p always gets the same token."""

    generation_id: str
    salt: int = 0  # two texts of different salt differ in every token
    tokens: list[LoggedToken] = field(default_factory=list)
    chains: list[int] = field(default_factory=lambda: [CHAIN_START])

    def grow(self, length: int) -> None:
        """Make it at least `length` tokens long."""
        for position in range(len(self.tokens), length):
            token = LoggedToken(0, position, position, 3 + self.salt + position, f" t{position}")
            self.tokens.append(token)
            self.chains.append(extend_chain(self.chains[-1], 0, token.token_id))

    def row(self, lease: str, t0: int, t1: int, **end: Any) -> StepRow:
        """The row that carries positions t0 to t1 - 1."""
        self.grow(t1)
        body, chain1 = encode_tokens(self.tokens[t0:t1], self.chains[t0])
        return StepRow(self.generation_id, lease, t0, t1 - t0, self.chains[t0], chain1, body, **end)

    def last_row(self, lease: str, t0: int, t1: int) -> StepRow:
        """The same, and the end of the generation."""
        return self.row(lease, t0, t1, end=EndReason.DONE, end_choices=(ChoiceEnd(0, "EOS", t1),))


@dataclass(slots=True)
class Rig:
    """One herd's Redis, by the broker and by a plain client."""

    broker: Broker
    client: Any

    async def submit(self, generation_id: str = "", **changes: Any) -> Submitted:
        """Queue a job; by default a new one of CALLER, read by GATEWAY, without a resume window."""
        job_changes = {k: changes.pop(k) for k in ("max_time_ms", "job_class") if k in changes}
        job = make_job(generation_id or keys.new_generation_id(), **job_changes)
        wanted: dict[str, Any] = {
            "caller": CALLER,
            "digest": "digest-a",
            "gateway_id": GATEWAY,
            "max_waiting": 1000,
            "window_ms": 0,
        }
        return await self.broker.submit(job, **(wanted | changes))

    async def deliver(self, worker: str = WORKER, *, count: int = 1, job_class: str = CLASS) -> list[Delivered]:
        """Read new entries as `worker`; exactly `count` must be there."""
        entries = await self.broker.read_jobs(worker, MODEL, job_class, count=count, block_ms=0)
        assert len(entries) == count
        return entries

    async def take(self, entry: Delivered, worker: str = WORKER) -> Taken:
        """Take under a new lease; it must succeed."""
        taken = await self.broker.take(entry, worker_id=worker, lease=new_lease())
        assert isinstance(taken, Taken), taken
        return taken

    async def start(self, worker: str = WORKER, **changes: Any) -> tuple[Taken, Text]:
        """A running generation of `worker`, and the text it will have."""
        submitted = await self.submit(**changes)
        [entry] = await self.deliver(worker, job_class=changes.get("job_class", CLASS))
        return await self.take(entry, worker), Text(submitted.generation_id)

    async def step(self, row: StepRow) -> RowReply:
        """A step of one row."""
        [reply] = await self.broker.step([row])
        return reply

    async def kill(self, worker: str = WORKER) -> int:
        """Reap a worker that has not beaten since somebody looked; how many entries it freed."""
        beat = await self.client.hget(keys.worker(worker), "beat")
        freed = await self.broker.reap(worker, (beat or b"").decode(), MODEL)
        assert freed is not None
        return freed

    async def adopt(
        self, worker: str = OTHER_WORKER, *, max_jobs: int = 8, may_run_alone: bool = True
    ) -> list[Delivered]:
        """Adopt free entries as `worker`."""
        return await self.broker.adopt(worker, MODEL, max_jobs=max_jobs, may_run_alone=may_run_alone)

    async def fields(self, generation_id: str) -> dict[str, str]:
        """The whole record."""
        raw = await self.client.hgetall(keys.record(generation_id))
        return {k.decode(): v.decode() for k, v in raw.items()}

    async def rewrite(self, generation_id: str, **fields: object) -> None:
        """Change the record behind the scripts' back: the way to let time pass without waiting."""
        await self.client.hset(keys.record(generation_id), mapping=fields)

    async def token_ids(self, generation_id: str) -> list[int]:
        """Every token in the log."""
        entries = await self.broker.read_log(generation_id)
        return [token.id for e in entries if isinstance(e, TokenRow) for token in decode_tokens(e.body)]

    async def inbox(self, gateway: str = GATEWAY) -> list[InboxRow]:
        """Every row in a gateway's inbox."""
        last_id, rows = await self.broker.read_inbox(gateway, "0", block_ms=1)
        more = rows
        while more:
            last_id, more = await self.broker.read_inbox(gateway, last_id, block_ms=1)
            rows += more
        return rows

    async def pending(self, queue: str = QUEUE) -> dict[str, str]:
        """entry id -> consumer of all that is delivered and not acked."""
        rows = await self.client.xpending_range(queue, keys.GROUP, "-", "+", 10_000)
        return {row["message_id"].decode(): row["consumer"].decode() for row in rows}

    async def snapshot(self) -> dict[bytes, Any]:
        """The contents of every key but the lifetimes: two equal ones mean that nothing was written between."""
        contents: dict[bytes, Any] = {}
        async for key in self.client.scan_iter():
            match await self.client.type(key):
                case b"hash":
                    contents[key] = await self.client.hgetall(key)
                case b"stream":
                    contents[key] = await self.client.xrange(key)
                case b"zset":
                    contents[key] = await self.client.zrange(key, 0, -1)
                case _:
                    contents[key] = await self.client.get(key)
        contents[b"pending"] = await self.pending()
        return contents
