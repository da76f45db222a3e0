"""What is wrong with a server that answers: it has no append-only file or cannot write it, or it evicts."""

import resource
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from contract.broker import Broker
from contract.errors import BrokerDown
from contract.server_check import WeaknessKind, weaknesses_of
from tests.contract.rig import Rig
from tests.redis_server import RunningServer, start_valkey
from tests.until import until


def one_node(rig: Rig, url: str) -> dict[str, Any]:
    """Where a setting is changed: one node of a cluster is enough."""
    return {"target_nodes": rig.client.get_random_node()} if url.startswith("redis+cluster") else {}


async def kinds(rig: Rig) -> set[WeaknessKind]:
    """What is told of the server."""
    return {each.kind for each in await rig.broker.find_weaknesses()}


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_server_that_evicts_is_told_of_while_it_runs(rig: Rig, url: str, policy: str) -> None:
    """It was fit when the process started, and is again afterwards; whatever keys the policy picks from."""
    where = one_node(rig, url)
    before = await kinds(rig)
    await rig.client.config_set("maxmemory-policy", policy, **where)
    try:
        (told,) = [each for each in await rig.broker.find_weaknesses() if each.kind is WeaknessKind.EVICTS]
    finally:
        await rig.client.config_set("maxmemory-policy", "noeviction", **where)

    assert told.text.startswith(f"maxmemory-policy is {policy}; it must be noeviction")
    assert await kinds(rig) == before


async def test_a_server_without_its_file_is_told_of_and_not_refused(rig: Rig, url: str) -> None:
    """Some run so on purpose. The cluster of these tests does."""
    if url.startswith("redis+cluster"):
        assert await kinds(rig) == {WeaknessKind.FORGETS}
        await rig.broker.check_server()
        return
    assert await kinds(rig) == set()
    await rig.client.config_set("appendonly", "no")
    try:
        assert await kinds(rig) == {WeaknessKind.FORGETS}
        await rig.broker.check_server()
    finally:
        await rig.client.config_set("appendonly", "yes")
    assert await kinds(rig) == set()


@pytest.mark.parametrize("kind", ["valkey", "debian_redis"])
async def test_a_server_that_does_not_let_us_ask_is_taken(request: pytest.FixtureRequest, kind: str) -> None:
    """Managed ones forbid this and that."""
    url: str = request.getfixturevalue(kind).url
    client: Any
    async with redis.asyncio.Redis.from_url(url) as client:
        await client.acl_setuser("curious", enabled=True, nopass=True, keys=["*"], channels=["*"], categories=["+@all"])
        await client.execute_command("ACL", "SETUSER", "curious", "-info")
        broker = Broker.connect(url.replace("://", "://curious:any@"))
        try:
            await broker.check_server()
            assert await broker.find_weaknesses() == ()
        finally:
            await broker.close()
            await client.acl_deluser("curious")


@dataclass(slots=True)
class Own:
    """A server of a test's own, a broker there, and a plain client."""

    server: RunningServer
    broker: Broker
    client: Any


@pytest.fixture
async def own(server_folder: Path) -> AsyncIterator[Own]:
    """Started for one test."""
    with tempfile.TemporaryDirectory(dir=server_folder) as folder:
        server = start_valkey(Path(folder))
        started = Own(server, Broker.connect(server.url), redis.asyncio.Redis.from_url(server.url))
        yield started
        await started.client.aclose()
        await started.broker.close()
        server.kill()


async def test_keys_that_were_evicted_are_told_of(own: Own) -> None:
    """Also once nothing more is: what was lost stays lost. The count is Redis' own, and can be reset."""
    await own.client.mset({f"key:{n}": "x" * 100 for n in range(200)})
    await own.client.config_set("maxmemory-policy", "allkeys-lru")
    await own.client.config_set("maxmemory", 1)

    async def has_evicted() -> bool:
        with suppress(redis.exceptions.OutOfMemoryError):
            await own.client.set("key", "x")
        return bool((await own.client.info("stats"))["evicted_keys"])

    await until(has_evicted)
    await own.client.config_set("maxmemory", 0)
    await own.client.config_set("maxmemory-policy", "noeviction")
    assert [each.kind for each in await own.broker.find_weaknesses()] == [WeaknessKind.EVICTED]
    await own.broker.check_server()  # with what is left one may begin
    await own.client.config_resetstat()
    assert await own.broker.find_weaknesses() == ()


async def test_a_file_that_cannot_be_written_is_told_of(own: Own) -> None:
    """Redis refuses writes then, which is an outage; why, only this tells. It goes on by itself once there is room."""
    pid = own.server.process.pid
    unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, unlimited[1]))  # as a full disk; its signal is ignored

    async def finds(*wanted: WeaknessKind) -> bool:
        with suppress(redis.exceptions.ResponseError):  # MISCONF
            await own.client.set("key", "x" * 1000)
        return [each.kind for each in await own.broker.find_weaknesses()] == list(wanted)

    await until(lambda: finds(WeaknessKind.UNWRITTEN))
    with pytest.raises(BrokerDown):
        await own.broker.announce("model", "digest", b"bundle")
    resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
    await until(finds)


def test_what_a_server_does_not_tell_is_taken_for_well() -> None:
    """A field may be absent; one that is there counts by itself."""
    assert list(weaknesses_of({})) == []
    assert list(weaknesses_of({"aof_enabled": 1, "maxmemory_policy": "noeviction"})) == []
    (evicts,) = weaknesses_of({"maxmemory_policy": "allkeys-random"})
    assert (evicts.kind, evicts.text[-22:]) == (WeaknessKind.EVICTS, "(maxmemory is unknown)")
    assert [each.kind for each in weaknesses_of({"aof_enabled": 0})] == [WeaknessKind.FORGETS]
    assert [each.kind for each in weaknesses_of({"aof_last_bgrewrite_status": "err"})] == [WeaknessKind.UNWRITTEN]
