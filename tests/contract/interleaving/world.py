"""Random interleavings of workers and gateways on a real server, command by command, with everything that goes wrong.

`python -m tests.contract.interleaving.world 0 200 [--lose-tails] [RULE]` plays seeds 0 to 199; RULE breaks a rule of
the protocol on purpose (see broken_rules.py), to show that the checks notice. With lost tails the server now and then
falls back to what it held some time ago, as after a truncated append-only file or a failover.
"""

import asyncio
import random
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from redis.exceptions import ResponseError

from contract import connection, keys
from contract.broker import Broker
from contract.errors import BrokerDown
from tests.contract.interleaving.broken_rules import RULES, BrokenRule
from tests.contract.interleaving.gateway import Gateway, Stream
from tests.contract.interleaving.invariants import check, check_lifetimes
from tests.contract.interleaving.wire import Violation, Wire
from tests.contract.interleaving.worker import Worker
from tests.contract.rig import CALLER, MODEL
from tests.redis_server import start_valkey

NUM_TICKS = 700
MAX_CALM_TICKS = 2500
CHECK_EVERY = 10


class World:
    """Three workers, two gateways, and the bad luck that befalls them."""

    def __init__(
        self, seed: int, broker: Broker, client: Any, rule: BrokenRule | None = None, *, loses_tails: bool = False
    ) -> None:
        self.rnd = random.Random(seed)
        self.wire = Wire(self.rnd)
        self.broker = broker
        self.client = client
        self.rule = rule
        self.loses_tails = loses_tails
        self.streams: list[Stream] = []
        self.workers: list[Worker] = []
        self.gateways: list[Gateway] = []
        self._num_processes = 0
        self._saved: list[tuple[bytes, int, bytes]] = []  # key, lifetime in ms, contents

    async def run(self) -> Counter[str]:
        """Chaos, then calm; what happened. Raises Violation."""
        await self.begin(num_workers=3)
        for tick in range(NUM_TICKS):
            await self._tick()
            await self._strike()
            if tick % CHECK_EVERY == 0:
                await check(self.client, self.streams)
        await self.calm_down()
        await check(self.client, self.streams)
        await check_lifetimes(self.client)
        self.wire.counts["generations"] = len(self.streams)
        self.wire.counts["tokens"] = sum(len(stream.tokens) for stream in self.streams)
        self.wire.counts.update(f"end {stream.end or 'DATA_LOSS'}" for stream in self.streams)
        return self.wire.counts

    async def begin(self, num_workers: int) -> None:
        """An empty server, workers, and two gateways."""
        await self.client.flushall()
        await self.broker.announce(MODEL, "digest", b"bundle")
        self.workers = [self.new_worker() for _ in range(num_workers)]
        self.gateways = [await self.new_gateway() for _ in range(2)]

    async def _tick(self) -> None:
        if self.rnd.random() < 0.7:
            await self.rnd.choice([each for each in self.workers if each.is_up]).tick()
        else:
            await self.rnd.choice([each for each in self.gateways if each.is_up]).tick()

    async def _strike(self) -> None:
        """Perhaps one piece of bad luck."""
        live = [each for each in self.workers if each.is_up]
        luck = self.rnd.random()
        if luck < 0.008:
            self._count("worker kills")
            self.rnd.choice(live).is_up = False
            self.workers.append(self.new_worker())
        elif luck < 0.022:
            self._count("freezes")
            self.rnd.choice(live).is_frozen = True
        elif luck < 0.028:
            worker = self.rnd.choice(live)
            if not worker.is_frozen:
                self._count("drains")
                await worker.drain()
                self.workers.append(self.new_worker())
        elif luck < 0.034:
            await self.kill_gateway()
        elif luck < 0.054:
            self._count("inbox trims")
            gateway = self.rnd.choice([each for each in self.gateways if each.is_up])
            if self.rnd.random() < 0.3:
                await self.client.delete(keys.inbox(gateway.gateway_id))
            else:
                length = self.rnd.randint(0, 3)
                await self.client.xtrim(keys.inbox(gateway.gateway_id), maxlen=length, approximate=False)
        elif luck < 0.056 and self.streams:
            await self.pass_deadline(self.rnd.choice(self.streams).generation_id)
        elif self.loses_tails and luck < 0.062:
            await self.save()
        elif self.loses_tails and luck < 0.065:
            await self.lose_tail()

    async def kill_gateway(self) -> None:
        """Its clients go on at a new one, each from what it has."""
        self._count("gateway kills")
        dead = self.rnd.choice([each for each in self.gateways if each.is_up])
        dead.is_up = False
        if self.rnd.random() < 0.5:  # its time to live is over
            await self.client.delete(keys.inbox(dead.gateway_id), keys.gateway(dead.gateway_id))
        successor = await self.new_gateway()
        self.gateways.append(successor)
        successor.left = dead.left
        for stream in dead.streams.values():
            await successor.attach(stream)

    async def pass_deadline(self, generation_id: str) -> None:
        """The deadline and its grace are over, and a gateway notices."""
        if await self.client.exists(keys.record(generation_id)):
            await self.client.hset(keys.record(generation_id), "deadline", 1)
            with suppress(BrokerDown):
                self._count("deadlines")
                await self.wire.call(self.broker.expire(generation_id))

    async def cancel_in_vain(self, generation_id: str) -> None:
        """A client cancels, an owner does not act on it for the grace, and a gateway notices."""
        record = keys.record(generation_id)
        if await self.client.exists(record):
            with suppress(BrokerDown):
                self._count("cancels in vain")
                await self.wire.call(self.broker.cancel(generation_id, caller=CALLER))
                await self.client.hset(record, "cancel", 1)
                await self.wire.call(self.broker.expire(generation_id))

    async def save(self) -> None:
        """What has reached the disk, or the replica."""
        self._saved = [
            (key, await self.client.pttl(key), await self.client.dump(key)) async for key in self.client.scan_iter()
        ]

    async def lose_tail(self) -> None:
        """The server is again what it was when it was saved, if it ever was."""
        if not self._saved:
            return
        self._count("lost tails")
        for stream in self.streams:
            stream.may_be_behind = True
            stream.was_over = stream.is_over
        await self.client.flushall()
        for key, ttl_ms, contents in self._saved:
            await self.client.restore(key, max(ttl_ms, 0), contents)
        self._saved = []

    async def calm_down(self) -> None:
        """No more faults, and at least one worker lives: everything ends, for every client. Raises Violation."""
        self.wire.chaos = False
        for worker in self.workers:
            worker.is_up = worker.is_up and not worker.is_frozen
        if not any(worker.is_up for worker in self.workers):
            self.workers.append(self.new_worker())
        for gateway in self.gateways:
            for stream in gateway.left if gateway.is_up else ():
                await gateway.attach(stream)
        for _ in range(MAX_CALM_TICKS):
            await self._tick()
            if all(stream.is_over for stream in self.streams):
                return
        hung = [stream.generation_id for stream in self.streams if not stream.is_over]
        record = await self.client.hgetall(keys.record(hung[0]))
        raise Violation(f"{len(hung)} streams hang: {record}")

    def new_worker(self) -> Worker:
        reconciles = self.rule is None or not self.rule.without_reconcile
        return Worker(self.broker, self.wire, self._new_name("worker"), reconciles)

    async def new_gateway(self) -> Gateway:
        sweeps = self.rule is None or not self.rule.without_sweep
        gateway = Gateway(self.broker, self.wire, self._new_name("gateway"), self.streams, sweeps)
        gateway.epoch = await self.broker.gateway_beat(gateway.gateway_id)
        return gateway

    def _new_name(self, kind: str) -> str:
        self._num_processes += 1
        return f"{kind}-{self._num_processes}"

    def _count(self, what: str) -> None:
        self.wire.counts[what] += 1


async def play(seed: int, broker: Broker, client: Any, rule: str = "", *, loses_tails: bool = False) -> Counter[str]:
    """One world to its end. Raises Violation; also for a script that fails, which a broken rule may cause."""
    broken = RULES[rule] if rule else None
    try:
        if broken is None:
            return await World(seed, broker, client, loses_tails=loses_tails).run()
        with broken.applied():
            return await World(seed, broker, client, broken, loses_tails=loses_tails).run()
    except ResponseError as error:
        raise Violation(f"a script failed: {error}") from error


async def play_many(seeds: range, rule: str, loses_tails: bool) -> int:
    """Play seeds and print what came out; how many worlds were bad."""
    totals: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    example = ""
    with tempfile.TemporaryDirectory(prefix="herd-") as folder:
        server = start_valkey(Path(folder))
        broker, client = Broker.connect(server.url), connection.connect(server.url)
        for seed in seeds:
            try:
                totals += await play(seed, broker, client, rule, loses_tails=loses_tails)
            except Violation as violation:
                bad[str(violation).partition(":")[0] if "invariant" in str(violation) else "other"] += 1
                example = example or f"seed {seed}: {violation}"
        await broker.close()
        await client.aclose()
        server.kill()
    print(f"rule broken: {rule or 'none'}; {len(seeds)} worlds, {bad.total()} bad {dict(bad)}")
    print(f"  {example or dict(totals.most_common())}"[:3000])
    return bad.total()


if __name__ == "__main__":
    first, last, *more = sys.argv[1:]
    [rule] = [each for each in more if each != "--lose-tails"] or [""]
    sys.exit(min(1, asyncio.run(play_many(range(int(first), int(last)), rule, "--lose-tails" in more))))
