"""Every script of two workers, two gateways and their clients, in the order that hypothesis finds worst.

Unlike the random worlds a failure here comes out shrunk to the few calls that it takes.
"""

import asyncio
import random
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import pytest
from hypothesis import Phase, settings, strategies
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.exceptions import ResponseError

from contract import connection, keys
from contract.broker import Broker
from contract.errors import BrokerDown
from tests.contract.interleaving.broken_rules import RULES
from tests.contract.interleaving.gateway import Gateway
from tests.contract.interleaving.invariants import check, check_lifetimes
from tests.contract.interleaving.wire import Violation, Wire
from tests.contract.interleaving.worker import Worker
from tests.contract.interleaving.world import World
from tests.contract.rig import MODEL
from tests.redis_server import RunningServer

Answer = TypeVar("Answer")

# What is needed for a token stands more often: an order of calls in which nothing runs shows little.
WORKER_DUTIES = ("read", "take", "publish") * 3 + ("beat", "reconcile", "detect", "drain")
GATEWAY_DUTIES = ("submit", "inbox") * 2 + ("beat", "sweep")
NUM_EXAMPLES, NUM_STEPS = 50, 50

which = strategies.integers(0, 1)
faults = strategies.lists(strategies.sampled_from(["", "", "", "lost call", "lost reply"]), max_size=3)
numbers = strategies.integers(0, 2**32 - 1)


class PlannedWire(Wire):
    """Loses what it is told to lose: one plan for each call to come."""

    def __init__(self) -> None:
        super().__init__(random.Random(0))
        self.plan: list[str] = []

    def happens(self, probability: float) -> bool:
        """Nothing by chance."""
        return False

    async def call(self, call: Coroutine[Any, Any, Answer]) -> Answer:
        """As Wire."""
        fault = self.plan.pop(0) if self.plan else ""
        if fault == "lost call":
            call.close()
            raise BrokerDown
        answer = await call
        if fault == "lost reply":
            raise BrokerDown
        return answer


class Machine(RuleBasedStateMachine):
    """Two workers and two gateways at a real server; one of a pair that dies is replaced by a new process."""

    def __init__(self, url: str, *, loses_tails: bool) -> None:
        super().__init__()
        self.loses_tails = loses_tails
        self.is_broken = False
        self._num_rules = 0
        self.runner = asyncio.Runner()
        self.broker, self.client = Broker.connect(url), connection.connect(url)
        self.wire = PlannedWire()
        self.world = World(0, self.broker, self.client, loses_tails=loses_tails)
        self.world.wire = self.wire

    def run(self, call: Coroutine[Any, Any, Answer]) -> Answer:
        """To its end, on this machine's own loop."""
        try:
            return self.runner.run(call)
        except (Violation, ResponseError):
            self.is_broken = True  # it will not calm down
            raise

    def luck(self, number: int, plan: list[str]) -> None:
        """What the calls of the next rule meet, and every choice that its actors make."""
        self.wire.plan = list(plan)
        self._num_rules += 1  # with it no two generations get the same id
        self.wire.rnd.seed(f"{number} {self._num_rules}")

    @property
    def workers(self) -> list[Worker]:
        """Those that run: always two."""
        return [worker for worker in self.world.workers if worker.is_up]

    @property
    def gateways(self) -> list[Gateway]:
        """Those that run: always two."""
        return [gateway for gateway in self.world.gateways if gateway.is_up]

    @initialize()
    def begin(self) -> None:
        """An empty server."""
        self.run(self.world.begin(num_workers=2))

    @rule(gateway=which, worker=which, luck=numbers, count=strategies.integers(0, 5))
    def start(self, gateway: int, worker: int, luck: int, count: int) -> None:
        """A generation comes, and goes some way from the queue to the log."""
        self.serve(gateway, "submit", luck, [])
        for duty in ("read", "take", "publish", "publish", "publish")[:count]:
            self.work(worker, duty, luck, [])

    @rule(worker=which, luck=numbers, plan=faults)
    def move(self, worker: int, luck: int, plan: list[str]) -> None:
        """One worker's jobs go to the other, and the first does not know it yet."""
        self.reap(worker)
        for duty in ("read", "take", "publish"):
            self.work(1 - worker, duty, luck, plan)

    @rule(number=which, duty=strategies.sampled_from(WORKER_DUTIES), luck=numbers, plan=faults)
    def work(self, number: int, duty: str, luck: int, plan: list[str]) -> None:
        """A worker does one thing, and its engine may have made tokens meanwhile."""
        self.luck(luck, plan)
        worker = self.workers[number]
        if luck % 3:
            worker.generate()
        with suppress(BrokerDown):
            self.run(getattr(worker, duty)())
        if not worker.is_up:
            self.world.workers.append(self.world.new_worker())

    @rule(number=which, duty=strategies.sampled_from(GATEWAY_DUTIES), luck=numbers, plan=faults)
    def serve(self, number: int, duty: str, luck: int, plan: list[str]) -> None:
        """A gateway does one thing."""
        self.luck(luck, plan)
        with suppress(BrokerDown):
            self.run(getattr(self.gateways[number], duty)())

    @rule(number=which, luck=numbers, plan=faults)
    def annoy(self, number: int, luck: int, plan: list[str]) -> None:
        """A client cancels, leaves, or comes back."""
        self.luck(luck, plan)
        with suppress(BrokerDown):
            self.run(self.gateways[number].annoy())

    @rule(number=which)
    def crash_worker(self, number: int) -> None:
        """SIGKILL; nobody knows yet."""
        self.workers[number].is_up = False
        self.world.workers.append(self.world.new_worker())

    @rule(number=which)
    def reap(self, number: int) -> None:
        """Somebody takes a worker for dead, rightly or not: it is fenced from here on."""
        worker_id = self.workers[number].worker_id
        beats = {each.worker_id: each.beat for each in self.run(self.broker.pool())}
        self.run(self.broker.reap(worker_id, beats.get(worker_id, ""), MODEL))

    @rule(luck=numbers)
    def crash_gateway(self, luck: int) -> None:
        """Its clients go on elsewhere."""
        self.luck(luck, [])
        self.world.rnd.seed(luck)
        self.run(self.world.kill_gateway())

    @precondition(lambda self: self.world.streams)
    @rule(luck=numbers)
    def pass_deadline(self, luck: int) -> None:
        """And a gateway notices."""
        stream = self.world.streams[luck % len(self.world.streams)]
        self.run(self.world.pass_deadline(stream.generation_id))

    @precondition(lambda self: self.world.streams)
    @rule(luck=numbers, plan=faults)
    def cancel_in_vain(self, luck: int, plan: list[str]) -> None:
        """Its owner may live all the same: then it is fenced."""
        self.luck(luck, plan)
        stream = self.world.streams[luck % len(self.world.streams)]
        self.run(self.world.cancel_in_vain(stream.generation_id))

    @rule(number=which, length=strategies.integers(0, 3))
    def trim_inbox(self, number: int, length: int) -> None:
        """Rows are lost before their reader has them."""
        self.run(self.trim(self.gateways[number].gateway_id, length))

    async def trim(self, gateway_id: str, length: int) -> None:
        """To its newest entries."""
        await self.client.xtrim(keys.inbox(gateway_id), maxlen=length, approximate=False)

    @precondition(lambda self: self.loses_tails)
    @rule()
    def save(self) -> None:
        """What is there now reaches the disk."""
        self.run(self.world.save())

    @precondition(lambda self: self.loses_tails)
    @rule()
    def lose_tail(self) -> None:
        """The server falls back to what was saved."""
        self.run(self.world.lose_tail())

    @invariant()
    def holds(self) -> None:
        """The list of the protocol, on the server as it is."""
        if self.world.workers:
            self.run(check(self.client, self.world.streams))

    def teardown(self) -> None:
        """Faults stop: everything ends, for every client."""
        self.luck(0, [])
        try:
            if self.world.workers and not self.is_broken:
                self.run(self.world.calm_down())
                self.run(check(self.client, self.world.streams))
                self.run(check_lifetimes(self.client))
        finally:
            self.run(self.broker.close())
            self.run(self.client.aclose())
            self.runner.close()


def play(url: str, *, loses_tails: bool, shrinks: bool = True) -> None:
    """Every example on one server. Raises Violation."""
    bounds = settings(
        max_examples=NUM_EXAMPLES,
        stateful_step_count=NUM_STEPS,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate, Phase.shrink] if shrinks else [Phase.generate],
    )

    class MachineHere(Machine):
        def __init__(self) -> None:
            super().__init__(url, loses_tails=loses_tails)

    run_state_machine_as_test(MachineHere, settings=bounds)


@pytest.mark.parametrize("loses_tails", [False, True], ids=["", "with lost tails"])
def test_no_order_of_calls_breaks_an_invariant(valkey: RunningServer, loses_tails: bool) -> None:
    """Lost calls and replies, deaths true and false, lost inboxes, cancels, deadlines: all invariants hold."""
    play(valkey.url, loses_tails=loses_tails)


@pytest.mark.parametrize("name", ["unfenced step", "ack apart from close", "reap keeps the lease"])
def test_a_broken_rule_is_found(valkey: RunningServer, name: str) -> None:
    """With a rule taken away hypothesis finds an order that shows it."""
    with RULES[name].applied(), pytest.raises((Violation, ResponseError)):
        play(valkey.url, loses_tails=False, shrinks=False)
