"""One small model behind a real gateway, a real worker and a real valkey, for all tests of this folder."""

import dataclasses
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import torch

from tests.knobs.model import make_folder
from tests.knobs.rig import MODEL, Herd, Pace, PacedEngine, load_engine, working
from tests.redis_server import RunningServer, start_valkey
from tests.service.conftest import is_serving
from tests.service.gateways import running_gateway
from tests.until import until
from worker.served import Served


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The model is so small that a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder."""
    return make_folder(tmp_path_factory.mktemp("knobs"))


@pytest.fixture(scope="session")
def valkey() -> Iterator[RunningServer]:
    """A server of its own."""
    path = Path(tempfile.mkdtemp(prefix="herd-"))  # a socket's path is short
    running = start_valkey(path)
    yield running
    running.kill()
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def served(folder: Path) -> Served:
    """The model, loaded as a worker loads it."""
    return load_engine(folder)


@pytest.fixture(scope="session")
def clock() -> Pace:
    """The engine's pace."""
    return Pace()


@pytest.fixture
def pace(clock: Pace) -> Iterator[Pace]:
    """The engine's pace, for one test to set."""
    yield clock
    clock.step_s = 0.0


@pytest.fixture(scope="session")
async def herd(valkey: RunningServer, folder: Path, served: Served, clock: Pace) -> AsyncIterator[Herd]:
    """Everything, ready to be asked."""
    from transformers import LlamaForCausalLM

    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    paced = dataclasses.replace(served, engine=PacedEngine(served.engine, clock))
    async with working(valkey.url, paced, MODEL), running_gateway(valkey.url) as gateway:
        await until(lambda: is_serving(gateway), what="the gateway sees the worker")
        yield Herd(gateway, served.bundle, theirs)
