"""A herd on a Redis that was there before it, and stays after it."""

from pathlib import Path

import pytest

from contract.broker import Broker, State
from tests.herd_process import herd_up
from tests.redis_server import start_redis
from tests.story.test_one_answer import herd


@pytest.fixture(autouse=True)
def no_lasting_keys() -> None:
    """Not the shared herd's Redis: nothing to check."""


async def test_a_herd_uses_the_redis_it_is_given(tmp_path_factory: pytest.TempPathFactory) -> None:
    """`--redis-url`: no private valkey is started, and the logs are still there when the herd has gone."""
    server = start_redis(Path(tmp_path_factory.mktemp("r")))
    try:
        with herd_up("--device", "cpu", "--redis-url", server.url) as running:
            assert "valkey" not in running.pids
            answered = herd("generate", "Count to five", "--json", "--address", running.address)
        assert answered.returncode == 0, answered.stderr
        generation_id = answered.stdout.partition('"generation_id": "')[2].partition('"')[0]
        broker = Broker.connect(server.url)
        record = await broker.record(generation_id, caller="anonymous")
        await broker.close()
        assert record.state is State.FINISHED
    finally:
        server.kill()
