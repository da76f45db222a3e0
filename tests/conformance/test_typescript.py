"""What the TypeScript client's folder says of itself: its README's conversation, its generated types."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.herd_process import HerdProcess

pytestmark = pytest.mark.timeout(600)


def test_the_conversation_of_the_readme(typescript: Path, herd_up: HerdProcess) -> None:
    """It is what is type-checked, and it talks to a real herd."""
    shown = re.search(r"```typescript\n(.*?)```", (typescript / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    _, _, program = (typescript / "conformance" / "conversation.ts").read_text().partition("\n")
    assert program == shown[1]

    command = ("node", str(typescript / "dist" / "conformance" / "conversation.js"), herd_up.address)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    asked, first, asked_again, second, turns = done.stdout.splitlines()
    assert asked == asked_again == "> Count to ten"
    assert "10" in first
    assert "10" in second
    assert turns == "2 turns"


def test_the_types_are_what_the_protos_generate(typescript: Path, tmp_path: Path) -> None:
    """`npm run generate` makes them so."""
    command = ("../../scripts/buf.sh", "generate", "--template", "buf.gen.yaml", "--output", str(tmp_path))
    done = subprocess.run(command, cwd=typescript, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    assert _files(tmp_path / "gen") == _files(typescript / "gen")


def _files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.ts")}
