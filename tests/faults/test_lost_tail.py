"""Redis comes back with less than it had said: its append-only file is cut, in the middle of a command too."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from contract.broker import Broker
from tests.redis_server import RunningServer
from tests.until import until
from tests.worker.engine_double import expected_ids
from tests.worker.rig import finished, has_tokens, is_ready, make_job, read, submit, worker_process

NUM_TOKENS = 400
NUM_JOBS = 4


@pytest.fixture
async def generation_ids(broker: Broker, redis_url: str, tmp_path: Path) -> AsyncIterator[list[str]]:
    """Jobs in the middle of their tokens, at a worker of its own two processes."""
    with worker_process(redis_url, tmp_path / "log", DOUBLE_STEP_S="0.01") as worker:
        await until(lambda: is_ready(broker, worker.pid), 60)
        ids = [await submit(broker, make_job([number + 1], NUM_TOKENS)) for number in range(NUM_JOBS)]
        for generation_id in ids:
            await until(lambda g=generation_id: has_tokens(broker, g, 20), 60)
        yield ids


@pytest.mark.parametrize("num_bytes", [1, 37, 5_000, 20_000])
async def test_the_owner_appends_again_what_a_cut_file_has_lost(
    broker: Broker, server: RunningServer, generation_ids: list[str], num_bytes: int
) -> None:
    """It holds every token, proves its lease, and goes back to where the log now ends: no token is missing or twice."""
    before = [len((await read(broker, generation_id)).ids) for generation_id in generation_ids]
    server.kill()
    cut(server, num_bytes)
    server.start()
    for number, generation_id in enumerate(generation_ids):
        logged = await finished(broker, generation_id, 60)
        assert logged.ids == expected_ids([number + 1], NUM_TOKENS)
        assert len(logged.ids) >= before[number]


async def test_a_file_cut_to_nothing_ends_nothing_silently(
    broker: Broker, server: RunningServer, generation_ids: list[str]
) -> None:
    """The records are gone, so their owners are fenced; the worker drops them, and serves what comes next."""
    server.kill()
    for path in data_files(server):
        path.unlink()
    server.start()
    again = await submit(broker, make_job([99], 5))
    assert (await finished(broker, again, 60)).ids == expected_ids([99], 5)
    assert await broker.standings(generation_ids) == [None] * NUM_JOBS


def cut(server: RunningServer, num_bytes: int) -> None:
    """Take the last bytes of what was appended."""
    [path] = [each for each in data_files(server) if each.name.endswith(".incr.aof")]
    os.truncate(path, max(0, path.stat().st_size - num_bytes))


def data_files(server: RunningServer) -> list[Path]:
    """The files that it starts from."""
    assert server.process.returncode == -signal.SIGKILL, "it is still writing"
    return list((server.path.parent / "appendonlydir").iterdir())
