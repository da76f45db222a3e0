"""What is wrong with a server that answers: it has no append-only file, or it evicts."""

from typing import Any

import pytest
import redis.asyncio

from contract.broker import Broker
from contract.server_check import WeaknessKind, weaknesses_of
from tests.contract.rig import Rig


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


def test_what_a_server_does_not_tell_is_taken_for_well() -> None:
    """A field may be absent; one that is there counts by itself."""
    assert list(weaknesses_of({})) == []
    assert list(weaknesses_of({"aof_enabled": 1, "maxmemory_policy": "noeviction"})) == []
    (evicts,) = weaknesses_of({"maxmemory_policy": "allkeys-random"})
    assert (evicts.kind, evicts.text[-22:]) == (WeaknessKind.EVICTS, "(maxmemory is unknown)")
    assert [each.kind for each in weaknesses_of({"aof_enabled": 0})] == [WeaknessKind.FORGETS]
