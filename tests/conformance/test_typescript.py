"""The TypeScript client beside its scenarios: its README, its generated types, TLS, keys, gateways that are lost."""

import asyncio
import re
import signal
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clients.python.gateway_processes import GatewayProcess, gateway_processes, reader_of
from tests.clients.python.scripted_gateway import GENERATION_ID, scripted
from tests.conformance.envoy import envoy
from tests.conformance.runners import Observation, Program
from tests.herd_process import HerdProcess
from tests.service.test_process import make_certificate

pytestmark = pytest.mark.timeout(600)

NUM_TOKENS = 240
STORY = {"temperature": 20, "top_k": 1000, "seed": 12, "max_new_tokens": NUM_TOKENS, "ignore_eos": True}
TELL: dict[str, Any] = {"at": ["0", "1", "2"], "prompt": "Once upon a time", "knobs": STORY}
LOST_AFTER = 20
PING_MS = 1_000  # not 5 s, by default: Python's tests wait for that


@dataclass(frozen=True, slots=True)
class Secured:
    """Three gateways that speak TLS, an Envoy before them that does too, and the programs that run scenarios there."""

    gateways: list[GatewayProcess]
    proxy: str
    cert: Path
    node: Program
    web: Program

    async def run(self, step: dict[str, Any], heard: Callable[[str], Awaitable[None]] | None = None) -> Observation:
        """One step, by Node's client."""
        gateways = {str(number): gateway.address for number, gateway in enumerate(self.gateways)}
        (seen,) = await self.node.run({"gateways": gateways, "steps": [step], "ping_ms": PING_MS}, heard)
        return seen

    async def run_web(self, step: dict[str, Any], heard: Callable[[str], Awaitable[None]] | None = None) -> Observation:
        """One step, by the browser's client through Envoy."""
        steps = [step | {"at": ["proxy"]}]
        (seen,) = await self.web.run({"gateways": {"proxy": self.proxy}, "steps": steps}, heard)
        return seen


@pytest.fixture(scope="module")
def node(typescript: Path) -> tuple[str, ...]:
    """The command that runs scenarios in Node."""
    return ("node", str(typescript / "dist" / "conformance" / "runner.js"))


@pytest.fixture(scope="module")
async def secured(
    node: tuple[str, ...],
    programs: Callable[..., Program],
    herd_up: HerdProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Secured]:
    """For all tests here: two streams at a time may each lose a gateway."""
    folder = tmp_path_factory.mktemp("secured")
    key, cert = make_certificate(folder)
    async with gateway_processes(herd_up.redis_url, 3, folder, tls=(key, cert)) as gateways:
        pool = {"all": [gateway.address for gateway in gateways]}
        async with envoy(pool, folder, tls=(key, cert), ping_s=PING_MS // 1000) as addresses:
            yield Secured(
                gateways,
                addresses["all"].replace("127.0.0.1", "localhost"),
                cert,
                node=programs(*node, "tls", str(cert)),
                web=programs("env", f"NODE_EXTRA_CA_CERTS={cert}", *node, "web"),
            )


@pytest.fixture(scope="module")
async def undisturbed(secured: Secured) -> Observation:
    """The story when nothing happens."""
    return await secured.run(TELL | {"do": "complete"})


@pytest.mark.parametrize(("number", "program"), [(0, "conversation.ts"), (1, "conversation.web.ts")])
def test_the_conversations_of_the_readme(typescript: Path, number: int, program: str) -> None:
    """They are what is type-checked, what is bundled, and what runs."""
    shown = re.findall(r"```typescript\n(.*?)```", (typescript / "README.md").read_text(), re.DOTALL)
    _, _, text = (typescript / "conformance" / program).read_text().partition("\n")

    assert text == shown[number]


def test_the_conversation_in_node(typescript: Path, herd_up: HerdProcess) -> None:
    """It talks to a real herd."""
    command = ("node", str(typescript / "dist" / "conformance" / "conversation.js"), herd_up.address)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    asked, first, asked_again, second, turns = done.stdout.splitlines()
    assert asked == asked_again == "> Count to ten"
    assert "10" in first
    assert "10" in second
    assert turns == "2 turns"


async def test_tls(secured: Secured, node: tuple[str, ...], programs: Callable[..., Program]) -> None:
    """By a certificate of one's own, also through Envoy; a client that speaks no TLS is refused."""
    ask = {
        "do": "complete",
        "at": ["0", "1", "2"],
        "prompt": "[INST] Count to ten [/INST]",
        "knobs": {"temperature": 0},
    }
    seen, by_web = await secured.run(ask), await secured.run_web(ask)
    plain = {"gateways": {}, "steps": [ask | {"at": [secured.proxy], "patience_s": 0}]}
    (refused,) = await programs(*node).run(plain)

    assert "9, 10" in seen["texts"][0]
    assert by_web["texts"] == seen["texts"]
    assert refused["error"]["kind"] == "ConnectionBroken"


def test_envoy_offers_http2_to_browsers(secured: Secured) -> None:
    """Which has no bound of six streams."""
    context = ssl.create_default_context(cafile=secured.cert)
    context.set_alpn_protocols(["h2", "http/1.1"])
    host, _, port = secured.proxy.partition(":")
    with (
        socket.create_connection((host, int(port))) as plain,
        context.wrap_socket(plain, server_hostname=host) as wrapped,
    ):
        assert wrapped.selected_alpn_protocol() == "h2"


async def test_the_key_goes_with_every_call(node: tuple[str, ...], programs: Callable[..., Program]) -> None:
    """With the stream, and with the one that goes on with it."""
    async with scripted("abcdef") as gateway:
        steps = [{"do": "generate", "at": ["it"], "prompt": "x"}, {"do": "attach", "at": ["it"], "from_position": 3}]
        scenario = {"gateways": {"it": gateway.address}, "api_key": "secret", "steps": steps}
        first, rest = await programs(*node).run(scenario)

    assert (first["texts"], rest["texts"]) == (["abcdef"], ["def"])
    assert [metadata["authorization"] for metadata in gateway.metadata] == ["Bearer secret"] * 2


async def test_the_end_of_a_client_ends_what_it_awaits(node: tuple[str, ...], programs: Callable[..., Program]) -> None:
    """Of `complete` no id is known: its request_id finds the generation."""
    async with scripted("abcdef") as gateway:
        step = {"do": "complete", "at": ["it"], "prompt": "x", "close_after": 0}
        (seen,) = await programs(*node).run({"gateways": {"it": gateway.address}, "steps": [step]})

    assert seen["error"]["kind"] == "Cancelled"
    assert gateway.cancelled == [GENERATION_ID]


@pytest.mark.parametrize(("is_secured", "num_calls"), [(False, 2), (True, 1)])
async def test_a_gateway_that_takes_connections_and_says_nothing(
    secured: Secured, node: tuple[str, ...], programs: Callable[..., Program], is_secured: bool, num_calls: int
) -> None:
    """Frozen before it is connected to: noticed long before the deadline, and the program outlives the connection."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        step = {"do": "complete", "at": ["silent"], "prompt": "x", "patience_s": 0}
        gateways = {"silent": f"127.0.0.1:{silent.getsockname()[1]}"}
        program = secured.node if is_secured else programs(*node)
        seen = await program.run({"gateways": gateways, "steps": [step] * num_calls, "ping_ms": 100})

    assert [each["error"]["kind"] for each in seen] == ["ConnectionBroken"] * num_calls


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
async def test_a_gateway_lost_in_mid_stream_is_not_seen(
    secured: Secured, herd_up: HerdProcess, undisturbed: Observation, number: signal.Signals
) -> None:
    """Frozen, so that only its answers to pings stop; killed. The same tokens as undisturbed, each once.

    Through Envoy too, which pings where a page cannot.
    """
    lost: list[GatewayProcess] = []

    async def lose(generation_id: str) -> None:
        lost.append(await reader_of(herd_up.redis_url, generation_id, secured.gateways))
        lost[-1].send(number)

    step = TELL | {"do": "generate", "tell_after": LOST_AFTER}
    try:
        async with asyncio.TaskGroup() as group:
            both = [group.create_task(run(step, lose)) for run in (secured.run, secured.run_web)]
    finally:
        for gateway in lost:
            gateway.send(signal.SIGCONT)

    assert len(lost) == 2
    for seen in [each.result() for each in both]:
        assert "error" not in seen
        assert seen["positions"] == list(range(NUM_TOKENS))
        assert all(seen[part] == undisturbed[part] for part in ("texts", "ids", "reasons"))


def test_the_types_are_what_the_protos_generate(typescript: Path, tmp_path: Path) -> None:
    """`npm run generate` makes them so."""
    command = ("../../scripts/buf.sh", "generate", "--template", "buf.gen.yaml", "--output", str(tmp_path))
    done = subprocess.run(command, cwd=typescript, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    assert _files(tmp_path / "gen") == _files(typescript / "gen")


def _files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.ts")}
