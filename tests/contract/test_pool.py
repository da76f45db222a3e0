"""What processes say of themselves: models, heartbeats, the shape of the herd."""

import pytest

from contract import keys
from contract.broker import Broker, ServerUnfit, WorkerBeat
from contract.messages import VERSION
from tests.contract.rig import MODEL, QUEUE, WORKER, Rig


async def test_an_announced_model_is_known(rig: Rig) -> None:
    """By its bundle's digest; the bundle is there as it was, for days."""
    await rig.broker.announce("other", "d2", b"\x00\xff bundle")
    assert await rig.broker.models() == {MODEL: "bundle-digest", "other": "d2"}
    assert await rig.broker.bundle("d2") == b"\x00\xff bundle"
    assert await rig.broker.bundle("unknown") is None
    assert await rig.client.pttl(keys.model("other")) > 6 * 24 * 3_600_000
    assert await rig.client.pttl(keys.MODELS) > 6 * 24 * 3_600_000
    assert await rig.client.pttl(keys.bundle("d2")) > 6 * 24 * 3_600_000


async def test_a_model_that_nobody_announces_any_more_is_forgotten(rig: Rig) -> None:
    """At once when its key has expired; its name leaves the index with the next announcement of another."""
    await rig.broker.announce("old", "d1", b"bundle")
    await rig.client.delete(keys.model("old"))
    assert await rig.broker.models() == {MODEL: "bundle-digest"}
    await rig.client.zadd(keys.MODELS, {"old": await rig.broker.now_ms() - 1})
    await rig.broker.announce("new", "d2", b"bundle")
    assert await rig.client.zrange(keys.MODELS, 0, -1) == [MODEL.encode(), b"new"]


@pytest.mark.parametrize("lost", [keys.MODELS, keys.model(MODEL), keys.bundle("bundle-digest")])
async def test_an_announcement_that_is_not_whole_is_told(rig: Rig, lost: str) -> None:
    """Whichever key of it is gone; announced again, it stands. Another bundle's announcement is none of this one."""
    assert await rig.broker.is_announced(MODEL, "bundle-digest")
    assert not await rig.broker.is_announced(MODEL, "other-digest")
    await rig.client.delete(lost)
    assert not await rig.broker.is_announced(MODEL, "bundle-digest")
    await rig.broker.announce(MODEL, "bundle-digest", b"bundle")
    assert await rig.broker.is_announced(MODEL, "bundle-digest")


async def test_a_model_of_an_earlier_version_is_found_by_its_living_worker(rig: Rig) -> None:
    """Such a worker writes the model's key, and no index; its heartbeat names the model."""
    await rig.client.delete(keys.MODELS)
    assert await rig.broker.models() == {}
    assert await rig.broker.models([MODEL, "unknown"]) == {MODEL: "bundle-digest"}


async def test_announcing_again_keeps_the_queue(rig: Rig) -> None:
    """A second worker, a retry, or a new bundle: what waits goes on waiting."""
    await rig.submit()
    await rig.broker.announce(MODEL, "new-digest", b"new")
    assert await rig.broker.models() == {MODEL: "new-digest"}
    assert await rig.client.xlen(QUEUE) == 1
    await rig.deliver()


async def test_a_job_submitted_before_the_first_worker_is_delivered(rig: Rig) -> None:
    """The group begins at the start of the stream."""
    await rig.client.delete(QUEUE)
    await rig.submit()
    await rig.broker.announce(MODEL, "bundle-digest", b"bundle")
    await rig.deliver()


async def test_a_beat_counts_and_tells_the_time(rig: Rig) -> None:
    """Fields are replaced one by one; the counter only rises."""
    before_ms = await rig.broker.now_ms()
    beat_ms = await rig.broker.worker_beat(WORKER, {"state": "loading", "model": MODEL})
    assert before_ms <= beat_ms <= await rig.broker.now_ms()
    await rig.broker.worker_beat(WORKER, {"state": "ready"})
    await rig.broker.worker_beat(WORKER, {})
    assert await rig.broker.pool() == [WorkerBeat(WORKER, "3", {"state": "ready", "model": MODEL})]


async def test_a_silent_worker_leaves_the_pool(rig: Rig) -> None:
    """After a minute, whether its heartbeat's key or its place in the pool goes first."""
    await rig.broker.worker_beat(WORKER, {})
    assert 55_000 < await rig.client.pttl(keys.worker(WORKER)) <= 60_000
    await rig.client.zadd(keys.POOL, {WORKER: await rig.broker.now_ms() - 60_001})
    await rig.broker.worker_beat("worker-b", {})
    await rig.client.delete(keys.worker("worker-b"))
    await rig.broker.worker_beat("worker-c", {})
    assert [each.worker_id for each in await rig.broker.pool()] == ["worker-c"]


async def test_consumers_are_who_has_asked(rig: Rig) -> None:
    """Not the one that holds free entries; none for a model that nobody serves."""
    for worker in ("worker-b", "worker-a"):
        await rig.submit()
        [entry] = await rig.deliver(worker)
        await rig.broker.release(entry, worker_id=worker, lease=None)
    assert await rig.broker.consumers(MODEL) == ["worker-a", "worker-b"]
    assert await rig.broker.consumers("unknown") == []
    assert await rig.broker.own_pending(WORKER, "unknown") == []
    assert await rig.broker.adopt(WORKER, "unknown", max_jobs=1, may_run_alone=True) == []


async def test_a_fit_server_is_accepted(rig: Rig) -> None:
    """The first process writes the shape of the herd, every later one compares."""
    await rig.broker.check_server()
    await rig.broker.check_server()
    shape = {b"v": str(VERSION).encode(), b"shards": str(keys.SHARDS).encode()}
    assert await rig.client.hgetall(keys.META) == shape


@pytest.mark.parametrize(
    ("field", "text"),
    [("shards", "this herd has 8 shards, this process knows 1"), ("v", "this herd speaks version 8")],
)
async def test_a_herd_of_another_shape_is_refused(rig: Rig, field: str, text: str) -> None:
    """Keys would be looked for where they are not."""
    await rig.client.hset(keys.META, field, 8)
    with pytest.raises(ServerUnfit, match=text):
        await rig.broker.check_server()
    assert await rig.client.hget(keys.META, field) == b"8"


async def test_a_server_that_evicts_is_refused(rig: Rig, url: str) -> None:
    """One node of a cluster is enough."""
    node = rig.client.get_random_node() if url.startswith("redis+cluster") else None
    where = {"target_nodes": node} if node else {}
    await rig.client.config_set("maxmemory-policy", "allkeys-lru", **where)
    try:
        with pytest.raises(ServerUnfit, match="maxmemory-policy is allkeys-lru; it must be noeviction"):
            await rig.broker.check_server()
    finally:
        await rig.client.config_set("maxmemory-policy", "noeviction", **where)
    await rig.broker.check_server()


async def test_a_server_that_rejects_us_is_refused(rig: Rig, url: str) -> None:
    """A wrong password does not mend itself by waiting."""
    wrong = Broker.connect(url.replace("://", "://user:password@"))
    with pytest.raises(ServerUnfit, match="the server refuses us"):
        await wrong.check_server()
    await wrong.close()
    await rig.broker.check_server()
