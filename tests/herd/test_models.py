"""`herd models` where there is nothing to show."""

import asyncio

import pytest

from herd.models import ModelsOptions, run_models
from herd.reach import Reach
from tests.redis_server import start_valkey
from tests.service.conftest import short_folder
from tests.service.gateways import running_gateway


async def test_a_herd_without_workers_says_so(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence instead of an empty table; for programs an empty answer. Neither is an error."""
    server = start_valkey(short_folder(tmp_path_factory))
    try:
        async with running_gateway(server.url) as gateway:
            capsys.readouterr()
            for as_json, shown in ((False, "no model is served: no live worker"), (True, "{}")):
                options = ModelsOptions(Reach((gateway.address,)), as_json=as_json, watch=False)
                assert await asyncio.to_thread(run_models, options) == 0
                assert shown in capsys.readouterr().out.splitlines()
    finally:
        server.kill()


def test_nothing_listens_is_a_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1, the code, no stack trace."""
    assert run_models(ModelsOptions(Reach(("127.0.0.1:1",)), as_json=False, watch=False)) == 1
    told = capsys.readouterr().err
    assert told.startswith("UNAVAILABLE")
    assert "`herd up` starts a herd" in told
