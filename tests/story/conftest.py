"""After each story the herd's Redis holds no key without a lifetime."""

from collections.abc import Iterator

import pytest
import redis

from contract import keys
from tests.herd_process import HerdProcess

LASTING = (f"{keys.TAG}:q:", keys.DEAD, keys.META)  # never expire: jobs streams, the dead, the herd's constants


def assert_no_lasting_keys(herd: HerdProcess) -> None:
    """Every key but the three kinds that may last has a TTL."""
    client = redis.Redis.from_url(herd.redis_url)
    try:
        lasting = [key.decode() for key in client.scan_iter() if client.pttl(key) == -1]
    finally:
        client.close()
    assert [key for key in lasting if not key.startswith(LASTING)] == []


@pytest.fixture(autouse=True)
def no_lasting_keys(herd_up: HerdProcess) -> Iterator[None]:
    """The shared herd stays clean."""
    yield
    assert_no_lasting_keys(herd_up)
