"""What the Go client's folder says of itself: its README's conversation, its own tests."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.herd_process import HerdProcess

FOLDER = Path(__file__).parents[2] / "clients" / "go"

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
