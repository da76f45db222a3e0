"""A fleet is upgraded in the middle of its work: today's worker finishes what an earlier release left in Redis.

The entries are the golden ones of tests/contract, which stand as earlier scripts wrote them: fields that came later are
missing, and must not be missed.
"""

from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from contract import keys
from contract.broker import Broker
from contract.messages import EndReason
from tests.contract.golden_play import GENERATION, JOB, load
from tests.contract.rig import QUEUE, WORKER
from tests.worker.engine_double import expected_ids
from tests.worker.rig import finished, worker_process


@pytest.mark.parametrize("state", ["queued", "running"])
async def test_a_worker_of_today_finishes_a_job_of_an_earlier_release(
    broker: Broker, redis_url: str, tmp_path: Path, state: str
) -> None:
    """Queued there, or held by a worker of that release that dies: it is read, taken, continued and ended."""
    client = redis.asyncio.Redis.from_url(redis_url)
    await restore(client, await broker.now_ms(), is_running=state == "running")
    with worker_process(redis_url, tmp_path / "log", HERD_WORKER_MODEL_NAME=JOB.model):
        logged = await finished(broker, GENERATION, 60)
    await client.aclose()
    assert logged.ids == expected_ids(JOB.prompt_ids, JOB.stopping.max_new_tokens)
    assert logged.attempts == ([1, 2] if state == "running" else [1])
    assert logged.ending is not None
    assert logged.ending.reason is EndReason.DONE


async def restore(client: "redis.asyncio.Redis", now_ms: int, *, is_running: bool) -> None:
    """Write the golden entries back as they stood, with a deadline that lies ahead."""
    record: dict[Any, Any] = load("record_running" if is_running else "record_queued")
    entry_id, entry = load("queue_entry")
    tokens: dict[Any, Any] = {
        b"T": 0,
        b"chain": 0,
        b"first_ms": 0,
        b"last_ms": 0,
    }  # its owner dies before its first token
    await client.hset(keys.META, mapping=load("meta"))
    await client.hset(keys.record(GENERATION), mapping=record | tokens | {b"deadline": now_ms + 60_000})
    await client.pexpire(keys.record(GENERATION), 600_000)
    await client.xadd(QUEUE, entry, id=entry_id)
    await client.xgroup_create(QUEUE, keys.GROUP, id="0")
    if is_running:
        mark_id, mark = load("attempt_mark")
        await client.xadd(keys.log(GENERATION), mark, id=mark_id)
        await client.pexpire(keys.log(GENERATION), 600_000)
        await client.xreadgroup(keys.GROUP, WORKER, {QUEUE: ">"})
