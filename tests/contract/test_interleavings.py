"""Whatever goes wrong, in whatever order: no token is lost, none comes twice, everything ends.

`python -m tests.contract.interleaving.world 0 500` plays more.
"""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from contract import connection
from contract.broker import Broker
from tests.contract.interleaving.wire import Violation
from tests.contract.interleaving.world import play
from tests.redis_server import RunningServer

NUM_SEEDS = 20
NUM_SEEDS_WITH_LOST_TAILS = 5
MAX_WORLDS = 6


@pytest.fixture
async def at_valkey(valkey: RunningServer) -> AsyncIterator[tuple[Broker, Any]]:
    """A broker and a plain client."""
    broker, client = Broker.connect(valkey.url), connection.connect(valkey.url)
    yield broker, client
    await broker.close()
    await client.aclose()


@pytest.mark.parametrize("seed", range(NUM_SEEDS))
async def test_nothing_is_lost_or_doubled_and_everything_ends(seed: int, at_valkey: tuple[Broker, Any]) -> None:
    """Kills, freezes, false deaths, drains, lost replies, trims, cancels, leaves, deadlines: the invariants hold."""
    counts = await play(seed, *at_valkey)
    assert counts["tokens"] > 0


@pytest.mark.parametrize("seed", range(NUM_SEEDS_WITH_LOST_TAILS))
async def test_a_lost_tail_is_never_silent(seed: int, at_valkey: tuple[Broker, Any]) -> None:
    """The server falls back: the logs stay well-formed, every client gets the whole of one, or is told of the loss."""
    counts = await play(seed, *at_valkey, loses_tails=True)
    assert counts["tokens"] > 0


async def test_every_kind_of_server_keeps_the_rules(url: str, client: Any) -> None:
    """The same world on each."""
    broker = Broker.connect(url)
    counts = await play(7, broker, client)
    await broker.close()
    assert counts["tokens"] > 0


@pytest.mark.parametrize(
    ("rule", "first_seed"),
    [
        ("unfenced step", 0),
        ("unfenced inbox", 0),
        ("no t0 check", 0),
        ("ack apart from close", 0),
        ("state apart from close", 0),
        ("reap keeps the lease", 0),
        ("reap leaves the entry", 0),
        ("take of another's entry", 2),
        ("no look at silent streams", 3),
        ("no reconciliation", 16),
    ],
)
async def test_a_broken_rule_is_noticed(rule: str, first_seed: int, at_valkey: tuple[Broker, Any]) -> None:
    """The worlds are hard enough: with a rule taken away one of a few goes wrong."""
    with pytest.raises(Violation):
        await play_some(range(first_seed, first_seed + MAX_WORLDS), rule, at_valkey)


async def play_some(seeds: range, rule: str, at_valkey: tuple[Broker, Any]) -> None:
    """Until one goes wrong."""
    for seed in seeds:
        await play(seed, *at_valkey, rule)
