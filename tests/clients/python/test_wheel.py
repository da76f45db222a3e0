"""The built wheel, as strangers install it: alone, on the oldest grpcio and protobuf that it admits, typed."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.python.gateway_processes import gateway_processes
from tests.herd_process import ROOT, HerdProcess
from tests.images.conftest import clean_environment
from tests.service.test_process import make_certificate

OLDEST = ("protobuf==6.33.*", "grpcio==1.76.*")

pytestmark = pytest.mark.timeout(600)  # installing may have to download

STREAM = """
import sys
from pathlib import Path
from llamaherd.client import Client, Tls, user

tls = Tls(root_certificates=Path(sys.argv[2]).read_bytes(), server_name="localhost")
with Client(sys.argv[1], tls=tls, api_key="k", timeout_s=60) as client:
    print("".join(delta.text for delta in client.generate([user("Count to ten")], temperature=0.0)))
"""
TYPED = """
from llamaherd.client import AsyncClient, Client, Delta

def texts(client: Client) -> list[str]:
    return [delta.text for delta in client.generate("x", temperature=0.5, stop_strings=["."])]

async def facts(client: AsyncClient) -> tuple[str, int, Delta]:
    accepted = await client.submit("x", n=2)
    return accepted.generation_id, await client.count_tokens("x"), await anext(aiter(client.attach("id", 3, 4)))
"""
MISTYPED = """
from llamaherd.client import AsyncClient, Client

def wrong(client: Client, other: AsyncClient) -> str:
    client.generate("x", temperature="hot")
    client.generate("x", heat=1)
    client.attach(7)
    return other.count_tokens("x")
"""


def run(*command: str | Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """A command to its end, without this environment's packages."""
    return subprocess.run(command, env=clean_environment(variables), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the wheel, what it needs, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    python = folder / "env/bin/python"
    commands: tuple[list[str | Path], ...] = (
        ["build", "--wheel", "--python", sys.executable, "--out-dir", folder, ROOT / "clients/python"],
        ["venv", "--python", sys.executable, folder / "env"],
    )
    for command in commands:
        done = run("uv", *command)
        assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    done = run("uv", "pip", "install", "--python", python, wheel, *OLDEST)
    assert done.returncode == 0, done.stderr
    return python


def test_it_needs_grpc_and_protobuf_alone(python: Path) -> None:
    """googleapis-common-protos has the messages of errors; no OpenTelemetry, nothing of the server."""
    done = run("uv", "pip", "list", "--python", python, "--format", "freeze")
    names = {line.partition("==")[0].partition(" @")[0] for line in done.stdout.splitlines()}

    assert names == {"googleapis-common-protos", "grpcio", "llamaherd-client", "protobuf", "typing-extensions"}


async def test_it_streams_over_tls(python: Path, herd_up: HerdProcess, tmp_path: Path) -> None:
    """From a gateway with a certificate of an authority of one's own; warnings are errors."""
    key, cert = make_certificate(tmp_path)
    async with gateway_processes(herd_up.redis_url, 1, tmp_path, tls=(key, cert)) as (gateway,):
        done = run(python, "-W", "error", "-c", STREAM, gateway.address, cert)

    assert done.returncode == 0, done.stderr
    assert "9, 10" in done.stdout


def test_its_types_are_for_its_users(python: Path, tmp_path: Path) -> None:
    """mypy --strict sees py.typed, every knob, and which client is to be awaited."""
    programs = {name: tmp_path / f"{name}.py" for name in ("typed", "mistyped")}
    for name, text in (("typed", TYPED), ("mistyped", MISTYPED)):
        programs[name].write_text(text)
    command = (sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "--config-file", "")

    typed, mistyped = (run(*command, programs[name]) for name in ("typed", "mistyped"))

    assert typed.returncode == 0, typed.stdout
    errors = mistyped.stdout.splitlines()[:-1]
    lines = sorted({int(line.split(":")[1]) for line in errors if ": error:" in line})
    assert lines == [5, 6, 7, 8], mistyped.stdout
