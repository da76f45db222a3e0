"""Fixtures of these tests: three kinds of server, a broker at each, and the check that no key lives for ever."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from contract import connection, keys
from contract.broker import Broker
from tests.contract.cluster import start_cluster
from tests.contract.rig import GATEWAY, MODEL, Rig
from tests.redis_server import RunningServer, start_redis, start_valkey

LASTING = (keys.META, keys.DEAD, f"{keys.TAG}:q:")  # the only keys that may live for ever


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """A short path, since a unix socket's is bounded."""
    folder = Path(tempfile.mkdtemp(prefix="herd-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def valkey(server_folder: Path) -> Iterator[RunningServer]:
    """The valkey-server of the wheel."""
    (server_folder / "v").mkdir()
    running = start_valkey(server_folder / "v")
    yield running
    running.kill()


@pytest.fixture(scope="session")
def debian_redis(server_folder: Path) -> Iterator[RunningServer]:
    """Debian's redis-server, 7.0."""
    (server_folder / "r").mkdir()
    running = start_redis(server_folder / "r")
    yield running
    running.kill()


@pytest.fixture(scope="session")
def cluster_url(server_folder: Path) -> Iterator[str]:
    """A cluster of three masters."""
    (server_folder / "c").mkdir()
    with start_cluster(server_folder / "c") as running:
        yield running.url


@pytest.fixture(scope="session", params=["valkey", "redis", "cluster"])
def url(request: pytest.FixtureRequest) -> str:
    """Each kind of server in turn."""
    match request.param:
        case "valkey":
            return str(request.getfixturevalue("valkey").url)
        case "redis":
            return str(request.getfixturevalue("debian_redis").url)
        case _:
            return str(request.getfixturevalue("cluster_url"))


@pytest.fixture
async def client(url: str) -> AsyncIterator[Any]:
    """A plain client at an empty server."""
    plain: Any = connection.connect(url)
    await plain.flushall()
    yield plain
    await plain.aclose()


@pytest.fixture
async def rig(url: str, client: Any) -> AsyncIterator[Rig]:
    """A broker at an empty herd of one model, with one gateway's inbox."""
    broker = Broker.connect(url)
    await broker.announce(MODEL, "bundle-digest", b"bundle")
    await broker.gateway_beat(GATEWAY)
    yield Rig(broker, client)
    await broker.close()


@pytest.fixture(autouse=True)
def every_key_expires(request: pytest.FixtureRequest) -> Iterator[None]:
    """After the test every key but queues, dead letters and the herd's shape has a lifetime."""
    used = request.getfixturevalue("url") if "url" in request.fixturenames else None
    yield
    if used is not None:
        with _plain_client(used) as plain:
            for key in plain.scan_iter():
                if not key.decode().startswith(LASTING):
                    assert plain.pttl(key) > 0, f"{key!r} lives for ever"


@contextmanager
def _plain_client(used: str) -> Iterator[Any]:
    if not used.startswith(connection.CLUSTER_SCHEME):
        with closing(redis.Redis.from_url(used)) as client:
            yield client
        return
    with closing(redis.RedisCluster.from_url(f"redis://{used.removeprefix(connection.CLUSTER_SCHEME)}")) as cluster:
        yield cluster
        cluster.disconnect_connection_pools()  # type: ignore[no-untyped-call]  # its close leaves them to the collector
