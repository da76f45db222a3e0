"""The gateways that clients have to conform against, and the clients' runners."""

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from llamaherd.client import AsyncClient, Knobs, Overloaded
from tests.clients.python.gateway_processes import gateway_processes
from tests.clients.python.scripted_gateway import ScriptedGateway, scripted
from tests.conformance.browser import Browser, browser
from tests.conformance.envoy import envoy
from tests.conformance.runners import Program, Runner
from tests.herd_process import ROOT, HerdProcess

CLIENTS = ("python", "typescript", "go")
TYPESCRIPT = ROOT / "clients" / "typescript"
MOST_LONG = 64
NUM_MORE = 8
STORY = "Once upon a time"
LONG: Knobs = {"n": 16, "max_new_tokens": 900, "ignore_eos": True, "temperature": 20.0}


@pytest.fixture(scope="session")
def typescript() -> Path:
    """The TypeScript client, freshly built, with exactly the packages of its lock file."""
    for command in (
        ("npm", "ci", "--silent", "--prefer-offline", "--no-audit", "--no-fund"),
        ("npm", "run", "--silent", "build"),
    ):
        done = subprocess.run(command, cwd=TYPESCRIPT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    return TYPESCRIPT


@pytest.fixture(scope="module")
async def programs(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Callable[..., Program]]:
    """The program of a command; it runs until the last test of the module."""
    folder = tmp_path_factory.mktemp("programs")
    known: dict[tuple[str, ...], Program] = {}
    yield lambda *command: known.setdefault(command, Program(command, folder / f"{len(known)}.log"))
    for program in known.values():
        await program.end()


@pytest.fixture(params=(*CLIENTS, "browser"))
def runner(request: pytest.FixtureRequest, pair: dict[str, str], programs: Callable[..., Program]) -> Runner:
    """How a client runs a scenario."""
    if request.param == "browser":
        page: Browser = request.getfixturevalue("page")
        return Runner(request.getfixturevalue("proxies"), page.run, at=("both",))
    command: tuple[str, ...] = (sys.executable, "-m", "tests.conformance.python_runner")
    if request.param == "typescript":
        folder: Path = request.getfixturevalue("typescript")
        command = ("node", str(folder / "dist" / "conformance" / "runner.js"))
    elif request.param == "go":
        built: Path = request.getfixturevalue("go_programs")
        command = (str(built / "conformance"),)
    return Runner(pair, programs(*command).run)


@pytest.fixture(scope="module")
def page(typescript: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium, with the TypeScript client's pages."""
    command = ("npm", "run", "--silent", "bundle")
    done = subprocess.run(command, cwd=typescript, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    bundles = typescript / "dist" / "web"
    modules = {"page": bundles / "page.js", "conversation": bundles / "conversation.web.js"}
    with browser(modules, tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
async def recording() -> AsyncIterator[ScriptedGateway]:
    """A gateway that says "abcdef", and keeps what it was asked."""
    async with scripted("abcdef") as gateway:
        yield gateway


@pytest.fixture
def recorder(recording: ScriptedGateway) -> ScriptedGateway:
    """The same, as new."""
    recording.forget()
    return recording


@pytest.fixture(scope="module")
async def proxies(
    pair: dict[str, str], recording: ScriptedGateway, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, str]]:
    """Envoy before each gateway of the pair, before `both` together, and before the recorder."""
    alone = {name: [address] for name, address in pair.items()}
    pools = alone | {"both": [pair["one"], pair["two"]], "recorder": [recording.address]}
    async with envoy(pools, tmp_path_factory.mktemp("envoy")) as addresses:
        yield dict(addresses)


@pytest.fixture(scope="module")
async def pair(herd_up: HerdProcess, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, str]]:
    """Two gateways of one herd, and a third where nobody may wait behind another."""
    folders = [tmp_path_factory.mktemp(name) for name in ("pair", "busy")]
    async with (
        gateway_processes(herd_up.redis_url, 2, folders[0]) as gateways,
        gateway_processes(herd_up.redis_url, 1, folders[1], settings={"MAX_WAITING_TOKENS": "1"}) as strict,
    ):
        one, two = gateways
        yield {"one": one.address, "two": two.address, "busy": strict[0].address}


@asynccontextmanager
async def full_queue(address: str, busy: str) -> AsyncIterator[None]:
    """The gateway `busy` refuses: more waits than the worker takes at once, and more behind it; cancelled at last."""
    async with AsyncClient(address) as client, AsyncClient(busy, patience_s=0) as refused:
        ids: list[str] = []
        try:
            with suppress(Overloaded):
                while True:
                    assert len(ids) < MOST_LONG, "nothing waits, however much is asked for"
                    ids.append((await refused.submit(STORY, **LONG)).generation_id)
            for _ in range(NUM_MORE):
                ids.append((await client.submit(STORY, **LONG)).generation_id)
            yield
        finally:
            for generation_id in ids:
                await client.cancel(generation_id)
            for generation_id in ids:
                async for _ in client.attach(generation_id, timeout_s=60):
                    pass
