"""`herd dead`: jobs that were set aside are listed without their prompts, queued again, and forgotten."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import redis.asyncio

from contract import keys
from contract.broker import MAX_CRASHES, Broker, NotTaken, State, new_lease
from contract.messages import Job
from herd.dead import DeadOptions, run_drop, run_list, run_retry
from tests.contract.rig import CALLER, MODEL, OTHER_WORKER, Rig
from tests.redis_server import start_valkey
from tests.service.conftest import short_folder


@pytest.fixture
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Rig, str]]:
    """A herd's Redis, and where it answers."""
    server = start_valkey(short_folder(tmp_path_factory))
    broker, client = Broker.connect(server.url), redis.asyncio.Redis.from_url(server.url)
    yield Rig(broker, client), server.url
    await client.aclose()
    await broker.close()
    server.kill()


async def set_aside(rig: Rig) -> str:
    """The id of a job that ended MAX_CRASHES workers."""
    _, text = await rig.start()
    await rig.kill()
    for crash in range(1, MAX_CRASHES):
        [entry] = await rig.adopt(f"worker-{crash}")
        await rig.take(entry, f"worker-{crash}")
        await rig.kill(f"worker-{crash}")
    [entry] = await rig.adopt()
    assert await rig.broker.take(entry, worker_id=OTHER_WORKER, lease=new_lease()) is NotTaken.POISON
    return text.generation_id


async def test_what_was_set_aside_is_listed(rig: tuple[Rig, str], capsys: pytest.CaptureFixture[str]) -> None:
    """For people and for programs; how long it can still be queued again, and never what it asked."""
    herd, url = rig
    assert await asyncio.to_thread(run_list, DeadOptions(url), as_json=False) == 0
    assert capsys.readouterr().out == "no job was set aside\n"

    one, two = await set_aside(herd), await set_aside(herd)
    await herd.client.delete(keys.record(two))
    assert await asyncio.to_thread(run_list, DeadOptions(url), as_json=True) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["generation_id"], first["attempts"], first["model"]) == (one, MAX_CRASHES, MODEL)
    assert (first["prompt_tokens"], first["tokens"]) == (2, 0)
    assert 0 < first["expires_in_s"] <= 600
    assert (second["generation_id"], second["model"], second["expires_in_s"]) == (two, None, None)

    assert await asyncio.to_thread(run_list, DeadOptions(url), as_json=False) == 0
    shown = capsys.readouterr().out
    assert one in shown
    assert "no longer" in shown
    assert "it kept killing workers" in shown


async def test_one_is_queued_again_under_a_new_id(rig: tuple[Rig, str], capsys: pytest.CaptureFixture[str]) -> None:
    """An ended generation never runs again: the same job begins anew, uncharged, and leaves the list."""
    herd, url = rig
    old = await set_aside(herd)
    assert await asyncio.to_thread(run_retry, DeadOptions(url, (old,))) == 0
    new = capsys.readouterr().out.split()[-1]

    assert await herd.broker.dead.count() == 0
    [entry] = await herd.deliver(OTHER_WORKER)
    assert entry.generation_id == new
    taken = await herd.take(entry, OTHER_WORKER)
    assert (taken.attempt, taken.num_tokens) == (1, 0)
    before = Job.from_bytes(await herd.client.hget(keys.record(old), "job"))
    assert (taken.job.prompt_ids, taken.job.sampling, taken.job.stopping) == (
        *(before.prompt_ids, before.sampling),
        before.stopping,
    )
    assert (await herd.broker.record(new, caller=CALLER)).state is State.RUNNING
    assert (await herd.broker.record(old, caller=CALLER)).state is State.FINISHED


async def test_one_whose_prompt_has_gone_stays_on_the_list(
    rig: tuple[Rig, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It can only be forgotten; an id that is not on the list is told, too."""
    herd, url = rig
    gone, other = await set_aside(herd), await set_aside(herd)
    await herd.client.delete(keys.record(gone))

    assert await asyncio.to_thread(run_retry, DeadOptions(url, (gone,))) == 1
    assert f"{gone}: its prompt is no longer kept" in capsys.readouterr().err
    assert await asyncio.to_thread(run_drop, DeadOptions(url, (gone, "0.nobody"))) == 1
    said = capsys.readouterr()
    assert (said.out, "0.nobody is not among" in said.err) == ("1 jobs forgotten\n", True)
    assert [each.generation_id for each in await herd.broker.dead.all()] == [other]
    assert await asyncio.to_thread(run_drop, DeadOptions(url, all=True)) == 0
    assert await herd.broker.dead.count() == 0
