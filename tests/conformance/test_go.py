"""The Go client beside its scenarios: its README, its own tests, a gateway that is lost."""

import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.python.gateway_processes import GatewayProcess, gateway_processes, reader_of
from tests.conformance.runners import Program
from tests.herd_process import ROOT, HerdProcess

FOLDER = ROOT / "clients" / "go"
NUM_TOKENS = 120
STORY = {"temperature": 20, "top_k": 1000, "seed": 12, "max_new_tokens": NUM_TOKENS, "ignore_eos": True}
TELL: dict[str, Any] = {"at": ["0", "1"], "prompt": "Once upon a time", "knobs": STORY}
LOST_AFTER = 20

# The first test of a session builds the Go client.
pytestmark = pytest.mark.timeout(600)


def test_the_conversation_of_the_readme(go_programs: Path, herd_up: HerdProcess) -> None:
    """It is what is built, and it talks to a real herd."""
    shown = re.search(r"```go\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    _, _, program = (FOLDER / "conversation" / "main.go").read_text().partition("func main() {\n")
    body = program.removesuffix("}\n").replace("\n\t", "\n").removeprefix("\t")
    assert body == shown[1]

    command = (str(go_programs / "conversation"), herd_up.address)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    first, second, turns = done.stdout.splitlines()
    assert "10" in first
    assert "10" in second
    assert turns == "2 turns"


def test_its_own_tests(go_programs: Path) -> None:
    """Those of moments that a healthy gateway never shows."""
    done = subprocess.run((str(go_programs / "llamaherd.test"),), capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stdout + done.stderr


async def test_a_gateway_killed_in_mid_stream_is_not_seen(
    go_programs: Path, programs: Callable[..., Program], herd_up: HerdProcess, tmp_path: Path
) -> None:
    """The same tokens as undisturbed, each once."""
    program = programs(str(go_programs / "conformance"))
    lost: list[GatewayProcess] = []
    async with gateway_processes(herd_up.redis_url, 2, tmp_path) as gateways:

        async def lose(generation_id: str) -> None:
            lost.append(await reader_of(herd_up.redis_url, generation_id, gateways))
            lost[0].send(signal.SIGKILL)

        steps = [TELL | {"do": "complete"}, TELL | {"do": "generate", "tell_after": LOST_AFTER}]
        addresses = {str(number): gateway.address for number, gateway in enumerate(gateways)}
        undisturbed, seen = await program.run({"gateways": addresses, "steps": steps}, heard=lose)

    assert lost
    assert "error" not in seen
    assert seen["positions"] == list(range(NUM_TOKENS))
    assert all(seen[part] == undisturbed[part] for part in ("texts", "ids", "reasons"))
