"""Whether a Redis can hold this herd: a process asks once, before it does anything else."""

from typing import Any

from redis.asyncio import RedisCluster
from redis.exceptions import AuthenticationError, RedisClusterException, ResponseError

from contract import keys
from contract.connection import ServerUnfit, answered
from contract.errors import BrokerDown
from contract.messages import VERSION
from contract.scripts import run_script

MIN_VERSION = (7, 0)
_NOT_A_CLUSTER = "Cluster mode is not enabled"


async def check_server(client: Any) -> None:
    """Refuse a server that evicts, is too old, runs no scripts or rejects us, and a herd of another shape.

    Raises ServerUnfit, which waiting does not mend, or BrokerDown, which it may.
    """
    try:
        await _check_nodes(client)
        await _check_shape(client)
    except BrokerDown as error:
        cause = error.__cause__
        while cause is not None:
            if isinstance(cause, AuthenticationError) or _is_no_cluster(cause):
                raise ServerUnfit(f"the server refuses us: {cause}") from cause
            cause = cause.__cause__
        raise


def _is_no_cluster(error: BaseException) -> bool:
    return isinstance(error, RedisClusterException) and _NOT_A_CLUSTER in str(error)


async def _check_nodes(client: Any) -> None:
    nodes = {"target_nodes": RedisCluster.ALL_NODES} if isinstance(client, RedisCluster) else {}
    async with answered():
        servers = _by_node(await client.info("server", **nodes), "redis_version")
        memories = _by_node(await client.info("memory", **nodes), "maxmemory_policy")
    for server in servers:
        version = str(server["redis_version"])
        if tuple(int(part) for part in version.split(".")[:2]) < MIN_VERSION:
            raise ServerUnfit(f"Redis {version}; 7.0 or later is needed")
    for memory in memories:
        if (policy := memory["maxmemory_policy"]) != "noeviction":
            raise ServerUnfit(f"maxmemory-policy is {policy}; it must be noeviction, or tokens are lost")


async def _check_shape(client: Any) -> None:
    try:
        version, shards = await run_script(client, "meta", [keys.META], [VERSION, keys.SHARDS])
    except ResponseError as error:
        raise ServerUnfit(f"the server does not run our scripts: {error}") from error
    if int(version) != VERSION:
        raise ServerUnfit(f"this herd speaks version {int(version)} of the protocol, this process {VERSION}")
    if int(shards) != keys.SHARDS:
        raise ServerUnfit(f"this herd has {int(shards)} shards, this process knows {keys.SHARDS}")


def _by_node(answer: dict[str, Any], field: str) -> list[dict[str, Any]]:
    """INFO of one server, or of each node of a cluster."""
    return [answer] if field in answer else list(answer.values())
