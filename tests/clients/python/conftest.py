"""Every test of a stream runs with both clients."""

import pytest

from tests.clients.python.both import Ask, read_async, read_sync


@pytest.fixture(params=[read_sync, read_async], ids=["threads", "asyncio"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Reads a stream to its end."""
    kind: Ask = request.param
    return kind
