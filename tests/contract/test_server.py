"""The server's own troubles: gone, restarted, without scripts, full. All come out as BrokerDown, and pass."""

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from contract import connection, keys
from contract.broker import Broker, RowOutcome, ServerUnfit, State, new_lease
from contract.errors import BrokerDown
from contract.log_pages import LogPlace
from contract.messages import EndReason
from tests.contract.cluster import start_cluster, start_single
from tests.contract.rig import CALLER, CLASS, GATEWAY, MODEL, WORKER, Rig
from tests.redis_server import RunningServer, start_redis, start_valkey
from tests.until import until


@pytest.fixture(params=[start_valkey, start_redis], ids=["valkey", "redis"])
def own_server(request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    """A server that this test may kill."""
    with tempfile.TemporaryDirectory(prefix="herd-") as folder:
        running = request.param(Path(folder))
        yield running
        running.kill()


@pytest.fixture
async def own_rig(own_server: RunningServer) -> AsyncIterator[Rig]:
    """A broker at it."""
    client: Any = connection.connect(own_server.url)
    broker = Broker.connect(own_server.url)
    await broker.announce(MODEL, "bundle-digest", b"bundle")
    await broker.gateway_beat(GATEWAY)
    yield Rig(broker, client)
    await broker.close()
    await client.aclose()


async def is_up(broker: Broker) -> bool:
    """Whether it answers."""
    try:
        return await broker.now_ms() > 0
    except BrokerDown:
        return False


async def test_a_server_without_our_scripts_gets_them(rig: Rig) -> None:
    """After a SCRIPT FLUSH, or on a replica that was promoted, each call brings its script along."""
    await rig.client.script_flush()
    taken, text = await rig.start()
    await rig.client.script_flush()
    assert (await rig.step(text.last_row(taken.lease, 0, 1))).outcome is RowOutcome.DONE
    assert await rig.token_ids(text.generation_id) == [text.tokens[0].token_id]


async def test_every_call_says_that_the_server_is_gone(own_rig: Rig, own_server: RunningServer) -> None:
    """As one error, whichever way the call goes."""
    taken, text = await own_rig.start()
    own_server.kill()
    broker, generation_id = own_rig.broker, text.generation_id
    calls = [
        broker.check_server(),
        broker.now_ms(),
        own_rig.submit(),
        broker.attach(generation_id, caller=CALLER, gateway_id=GATEWAY),
        broker.record(generation_id, caller=CALLER),
        broker.leave(generation_id, gateway_id=GATEWAY),
        broker.cancel(generation_id, caller=CALLER),
        broker.expire(generation_id),
        broker.standings([generation_id]),
        broker.read_log(generation_id),
        broker.read_log_page(generation_id, LogPlace.at(0)),
        broker.gateway_beat(GATEWAY),
        broker.gateway_gone(GATEWAY),
        broker.read_inbox(GATEWAY, "0", block_ms=1),
        broker.pool(),
        broker.models(),
        broker.bundle("bundle-digest"),
        broker.announce(MODEL, "bundle-digest", b"bundle"),
        broker.is_announced(MODEL, "bundle-digest"),
        broker.worker_beat(WORKER, {}),
        broker.read_jobs(WORKER, MODEL, CLASS, count=1, block_ms=0),
        broker.adopt(WORKER, MODEL, max_jobs=1, may_run_alone=True),
        broker.take(taken.entry, worker_id=WORKER, lease=new_lease()),
        broker.step([text.row(taken.lease, 0, 1)]),
        broker.release(taken.entry, worker_id=WORKER, lease=None),
        broker.reap(WORKER, "", MODEL),
        broker.consumers(MODEL),
        broker.own_pending(WORKER, MODEL),
        broker.leases([generation_id]),
        broker.dead.set_aside(generation_id, lease=taken.lease, why="unreadable"),
    ]
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, BrokerDown), outcome


async def test_a_blocking_read_notices_that_the_server_dies(own_rig: Rig, own_server: RunningServer) -> None:
    """It does not wait for its time to be over."""
    reads = [
        asyncio.ensure_future(own_rig.broker.read_jobs(WORKER, MODEL, CLASS, count=1, block_ms=4000)),
        asyncio.ensure_future(own_rig.broker.read_inbox(GATEWAY, "$", block_ms=4000)),
    ]
    await until(lambda: blocked(own_rig, 2))
    own_server.kill()
    for outcome in await asyncio.gather(*reads, return_exceptions=True):
        assert isinstance(outcome, BrokerDown), outcome


async def blocked(rig: Rig, count: int) -> bool:
    """Whether as many clients are blocked in a read."""
    return int((await rig.client.info("clients"))["blocked_clients"]) == count


async def test_a_server_that_hangs_is_down(
    own_rig: Rig, own_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It accepts and never answers: every call is bounded, and the connections are not used again."""
    taken, text = await own_rig.start()
    own_server.process.send_signal(signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(connection, "ANSWER_TIMEOUT_S", 0.1)
        for call in (own_rig.broker.now_ms, own_rig.broker.models, lambda: own_rig.step(text.row(taken.lease, 0, 1))):
            with pytest.raises(BrokerDown):
                await call()
    own_server.process.send_signal(signal.SIGCONT)
    await until(lambda: is_up(own_rig.broker))
    assert (await own_rig.step(text.row(taken.lease, 0, 1))).num_tokens == 1


async def test_a_restart_over_the_append_only_file_loses_nothing(own_rig: Rig, own_server: RunningServer) -> None:
    """SIGKILL in the middle of a generation: owner, lease and log are as they were, and it goes on."""
    taken, text = await own_rig.start()
    await own_rig.step(text.row(taken.lease, 0, 3))
    before = await own_rig.fields(text.generation_id)
    own_server.settle()
    own_server.kill()
    with pytest.raises(BrokerDown):
        await own_rig.step(text.row(taken.lease, 3, 4))
    own_server.start()
    await until(lambda: is_up(own_rig.broker))
    assert await own_rig.fields(text.generation_id) == before
    assert await own_rig.pending() == {taken.entry.entry_id: WORKER}
    assert (await own_rig.step(text.last_row(taken.lease, 3, 5))).outcome is RowOutcome.DONE
    assert await own_rig.token_ids(text.generation_id) == [token.token_id for token in text.tokens]


async def test_a_loading_server_is_a_server_that_is_down(own_rig: Rig, own_server: RunningServer) -> None:
    """All calls in a row through a restart end as a value or as BrokerDown, never as anything else."""
    taken, text = await own_rig.start()
    own_server.settle()
    own_server.kill()
    starting = asyncio.get_running_loop().run_in_executor(None, own_server.start)
    while not starting.done():
        try:
            await own_rig.broker.leases([text.generation_id])
        except BrokerDown:
            await asyncio.sleep(0.005)
    await starting
    await until(lambda: is_up(own_rig.broker))
    assert await own_rig.broker.leases([text.generation_id]) == [(taken.lease, False)]


async def test_a_cancelled_read_ends_and_leaves_the_pool_usable(rig: Rig) -> None:
    """At whatever moment it is cancelled: no connection is handed on with an unread reply, no cancellation is lost."""
    for num_turns in range(24):
        reads = [
            asyncio.ensure_future(rig.broker.read_inbox("gateway-x", "0", block_ms=1000)),
            asyncio.ensure_future(rig.broker.read_jobs(WORKER, MODEL, CLASS, count=1, block_ms=1000)),
        ]
        for _ in range(num_turns):
            await asyncio.sleep(0)
        for read in reads:
            read.cancel()
        outcomes = await asyncio.gather(*reads, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in outcomes)
        calls = [rig.broker.dead.count(), rig.broker.leases(["x"]), rig.broker.models()]
        assert await asyncio.gather(*calls) == [0, [("", False)], {MODEL: "bundle-digest"}]


async def test_a_cancelled_step_can_be_repeated(rig: Rig) -> None:
    """Whether the first call reached the server or not."""
    taken, text = await rig.start()
    for position in range(20):
        row = text.row(taken.lease, position, position + 1)
        call = asyncio.ensure_future(rig.broker.step([row]))
        for _ in range(position % 4):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert (await rig.step(row)).num_tokens == position + 1
    assert await rig.token_ids(text.generation_id) == [token.token_id for token in text.tokens]


async def test_more_calls_than_connections_wait_for_one(rig: Rig) -> None:
    """A burst is no outage: whoever finds no connection waits for one."""
    num_calls = connection.MAX_CONNECTIONS + 100
    assert all(await asyncio.gather(*(rig.broker.now_ms() for _ in range(num_calls))))
    assert await asyncio.gather(*(rig.broker.dead.count() for _ in range(num_calls))) == [0] * num_calls  # by redis-py


async def test_listening_brings_each_message(rig: Rig) -> None:
    """After one for the subscription of each channel; from whatever node of a cluster."""
    async with rig.broker.listen(keys.WAKE, keys.nudge(WORKER)) as names:
        assert {await anext(names), await anext(names)} == {keys.WAKE, keys.nudge(WORKER)}
        await rig.client.execute_command("PUBLISH", keys.nudge(WORKER), "x")
        assert await anext(names) == keys.nudge(WORKER)
        await rig.client.execute_command("PUBLISH", keys.WAKE, "")
        assert await anext(names) == keys.WAKE


async def test_listening_survives_a_restart(own_rig: Rig, own_server: RunningServer) -> None:
    """The new connection counts as a message, since some may have been lost; then messages come again."""
    async with own_rig.broker.listen(keys.WAKE) as names:
        await anext(names)
        own_server.kill()
        own_server.start()
        assert await asyncio.wait_for(anext(names), 10) == keys.WAKE
        await until(lambda: is_up(own_rig.broker))
        await own_rig.client.publish(keys.WAKE, "")
        assert await asyncio.wait_for(anext(names), 10) == keys.WAKE


async def test_listening_may_begin_before_the_server(own_rig: Rig, own_server: RunningServer) -> None:
    """It waits for it."""
    own_server.kill()
    async with own_rig.broker.listen(keys.WAKE) as names:
        first = asyncio.ensure_future(anext(names))
        await asyncio.sleep(0)
        own_server.start()
        assert await asyncio.wait_for(first, 10) == keys.WAKE


async def test_listening_can_be_cancelled(rig: Rig) -> None:
    """In the middle of a wait, leaving no connection behind that complains."""

    async def listen_for_ever() -> None:
        async with rig.broker.listen(keys.WAKE) as names:
            async for _ in names:
                subscribed.set()

    subscribed = asyncio.Event()
    listener = asyncio.ensure_future(listen_for_ever())
    await subscribed.wait()
    listener.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listener


async def test_a_full_server_admits_nothing_and_finishes_what_it_has(own_rig: Rig) -> None:
    """submit is refused before it writes; whatever leads to an end, and the end itself, still works."""
    taken, text = await own_rig.start()
    other, other_text = await own_rig.start()
    waiting = await own_rig.submit()
    await own_rig.client.config_set("maxmemory", 1)
    num_keys = await own_rig.client.dbsize()
    with pytest.raises(BrokerDown):
        await own_rig.submit()
    assert await own_rig.client.dbsize() == num_keys
    await own_rig.broker.worker_beat(WORKER, {"state": "ready"})
    await own_rig.broker.gateway_beat(GATEWAY)
    await own_rig.broker.attach(text.generation_id, caller=CALLER, gateway_id="gateway-b")
    assert (await own_rig.step(text.row(taken.lease, 0, 1))).outcome is RowOutcome.OK
    assert (await own_rig.step(text.last_row(taken.lease, 1, 2))).outcome is RowOutcome.DONE
    await own_rig.broker.release(other.entry, worker_id=WORKER, lease=other.lease)
    [entry] = await own_rig.adopt()
    again = await own_rig.take(entry, "worker-b")
    await own_rig.broker.leave(other_text.generation_id, gateway_id=GATEWAY)
    assert (await own_rig.step(other_text.last_row(again.lease, 0, 1))).outcome is RowOutcome.DONE
    cancelled = await own_rig.broker.cancel(waiting.generation_id, caller=CALLER)
    assert cancelled == (State.FINISHED, EndReason.CANCELLED)
    await own_rig.deliver("worker-b")
    await own_rig.broker.check_server()
    await own_rig.client.config_set("maxmemory", 0)
    await own_rig.submit()


@pytest.mark.parametrize("setting", [("min-replicas-to-write", "1"), ("replicaof", "127.0.0.1 1")])
async def test_a_server_that_takes_no_writes_is_down(own_rig: Rig, setting: tuple[str, str]) -> None:
    """Without enough replicas, or as a replica of somebody else: a failover is on its way."""
    name, value = setting
    if name == "replicaof":
        await own_rig.client.execute_command("REPLICAOF", *value.split())
    else:
        await own_rig.client.config_set(name, value)
    with pytest.raises(BrokerDown):
        await own_rig.submit()
    with pytest.raises(BrokerDown):
        await own_rig.broker.worker_beat(WORKER, {})


async def test_a_server_that_is_no_cluster_is_refused(tmp_path: Path) -> None:
    """By a cluster's URL: the setting is wrong, and waiting does not mend it."""
    with start_single(tmp_path) as port:
        lost = Broker.connect(f"redis+cluster://127.0.0.1:{port}")
        with pytest.raises(ServerUnfit, match="Cluster mode is not enabled"):
            await lost.check_server()
        await lost.close()


async def test_a_cluster_without_our_node_is_down(tmp_path: Path) -> None:
    """The node of our tag is dead; every call says so within its bound, also one by a client that begins then."""
    with start_cluster(tmp_path) as running:
        broker, late = Broker.connect(running.url), Broker.connect(running.url)
        await broker.announce(MODEL, "bundle-digest", b"bundle")
        client: Any = connection.connect(running.url)
        await client.initialize()
        running.processes[int(client.get_node_from_key(keys.META).port)].kill()
        for each in (broker, late):
            for call in (each.now_ms, each.check_server, lambda each=each: each.standings([keys.new_generation_id()])):
                with pytest.raises(BrokerDown):
                    await call()
            await each.close()
        await client.aclose()


async def test_a_cluster_that_is_away_is_down() -> None:
    """Before the first answer, too."""
    lost = Broker.connect("redis+cluster://127.0.0.1:1")
    with pytest.raises(BrokerDown):
        await lost.check_server()
    with pytest.raises(BrokerDown):
        await lost.now_ms()
    await lost.close()
