"""Whether a Redis can hold this herd: a process asks before it does anything else, and then again and again."""

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import RedisCluster
from redis.exceptions import AuthenticationError, NoPermissionError, RedisClusterException, ResponseError

from contract import keys
from contract.connection import answered
from contract.errors import BrokerDown, ServerUnfit
from contract.messages import VERSION, MalformedMessage
from contract.scripts import run_script

MIN_VERSION = (7, 0)
_NOT_A_CLUSTER = "Cluster mode is not enabled"
_KEEPS = "noeviction"
_AOF_STATUSES = ("aof_last_write_status", "aof_last_bgrewrite_status")


class WeaknessKind(enum.StrEnum):
    """How a server breaks a promise while it answers. No process starts on one that evicts; those that run warn."""

    FORGETS = "forgets"  # no append-only file; some run so on purpose
    EVICTED = "evicted"  # some of its keys are lost; until it restarts, or forgets the count
    UNWRITTEN = "unwritten"  # the append-only file, or a rewrite of it: a restart would lose what it lacks
    EVICTS = "evicts"  # when it is full; nearly all our keys have a lifetime, so volatile-* is no better than allkeys-*


@dataclass(frozen=True, slots=True)
class Weakness:
    """One of them, in words for a person."""

    kind: WeaknessKind
    text: str


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


async def find_weaknesses(client: Any) -> tuple[Weakness, ...]:
    """What makes this server, or a node of this cluster, break a promise while it answers; at most one of a kind.

    By INFO alone, since managed servers forbid CONFIG. Raises BrokerDown.
    """
    found = [each for node in await _info(client, "memory", "persistence", "stats") for each in weaknesses_of(node)]
    return tuple({each.kind: each for each in reversed(found)}.values())


def weaknesses_of(node: Mapping[str, Any]) -> Iterator[Weakness]:
    """By what INFO says of it; what a server does not tell is taken for well."""
    if str(node.get("aof_enabled", 1)) == "0":
        text = "appendonly is no; a restart of Redis forgets generations, waiting jobs and conversations"
        yield Weakness(WeaknessKind.FORGETS, text)
    elif any(node.get(status, "ok") != "ok" for status in _AOF_STATUSES):
        text = "its append-only file or a rewrite of it fails (a full disk?); a restart would lose what was not written"
        yield Weakness(WeaknessKind.UNWRITTEN, text)
    if int(node.get("evicted_keys", 0)):
        text = "it has evicted keys, and with them tokens, jobs or conversations; CONFIG RESETSTAT forgets that it has"
        yield Weakness(WeaknessKind.EVICTED, text)
    if (policy := node.get("maxmemory_policy", _KEEPS)) != _KEEPS:
        bound = node.get("maxmemory", "unknown")
        text = f"maxmemory-policy is {policy}; it must be {_KEEPS}, or tokens are lost (maxmemory is {bound})"
        yield Weakness(WeaknessKind.EVICTS, text)


async def _check_nodes(client: Any) -> None:
    for node in await _info(client, "server"):
        version = str(node.get("redis_version", ""))
        if version and tuple(int(part) for part in version.split(".")[:2]) < MIN_VERSION:
            raise ServerUnfit(f"Redis {version}; 7.0 or later is needed")
    for weakness in await find_weaknesses(client):
        if weakness.kind is WeaknessKind.EVICTS:
            raise ServerUnfit(weakness.text)


async def _check_shape(client: Any) -> None:
    try:
        version, shards = await run_script(client, "meta", [keys.META], [VERSION, keys.SHARDS])
    except ResponseError as error:
        raise ServerUnfit(f"the server does not run our scripts: {error}") from error
    except MalformedMessage as error:
        raise ServerUnfit(f"{keys.META} is none of ours: {error}") from error
    if int(version) != VERSION:
        raise ServerUnfit(f"this herd speaks version {int(version)} of the protocol, this process {VERSION}")
    if int(shards) != keys.SHARDS:
        raise ServerUnfit(f"this herd has {int(shards)} shards, this process knows {keys.SHARDS}")


async def _info(client: Any, *sections: str) -> list[dict[str, Any]]:
    """INFO of one server, or of each node of a cluster; empty where we may not ask."""
    is_cluster = isinstance(client, RedisCluster)
    nodes = {"target_nodes": RedisCluster.ALL_NODES} if is_cluster else {}
    try:
        async with answered():
            answer = await client.info(*sections, **nodes)
    except NoPermissionError:
        return []
    is_by_node = is_cluster and all(isinstance(each, dict) for each in answer.values())
    return list(answer.values()) if is_by_node else [answer]
