"""The protos are well formed, break no released client, and the committed Python code is what they generate."""

import shutil
from pathlib import Path

import pytest

from tests.clients.conftest import ROOT, Run

GENERATED = Path("clients/python/llamaherd/v1")

pytestmark = pytest.mark.timeout(300)  # the first call of a script may install its tool


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of all that the scripts read, to be changed by the test; the installed tools are shared."""
    for folder in ("protos", "third_party", "scripts", GENERATED):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    (ROOT / ".tools").mkdir(exist_ok=True)
    for shared in (".tools", ".venv"):
        (tmp_path / shared).symlink_to(ROOT / shared)
    return tmp_path


def test_lint_finds_nothing(run: Run) -> None:
    """buf's STANDARD rules hold, and every message, field, method and value has its comment."""
    done = run("scripts/buf.sh", "lint")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_layout_is_bufs(run: Run) -> None:
    """`buf format` would change nothing."""
    done = run("scripts/buf.sh", "format", "--diff", "--exit-code", "protos")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_nothing_breaks_a_released_client(run: Run) -> None:
    """The API still serves every client made for the baseline."""
    done = run("scripts/breaking.sh")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_changed_field_type_is_found(tree: Path, run: Run) -> None:
    """The check is real: a token id that becomes a string is reported at its line."""
    change(tree / "protos/llamaherd/v1/common.proto", "  uint32 position = 3;", "  string position = 3;")

    done = run("scripts/breaking.sh", cwd=tree)

    assert done.returncode != 0
    assert "common.proto" in done.stdout
    assert 'Field "3" with name "position" on message "Token" changed type' in done.stdout


def test_renewing_the_baseline_accepts_a_change(tree: Path, run: Run) -> None:
    """After --renew the API as it stands is what later changes are held against."""
    change(tree / "protos/llamaherd/v1/common.proto", "  uint32 position = 3;", "  string position = 3;")

    assert run("scripts/breaking.sh", "--renew", cwd=tree).returncode == 0
    assert run("scripts/breaking.sh", cwd=tree).returncode == 0


def test_the_generated_code_is_current(run: Run) -> None:
    """clients/python/llamaherd/v1 is what the pinned generator makes of the protos today."""
    done = run("scripts/protos.sh", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_drift_is_found_and_mended(tree: Path, run: Run) -> None:
    """A proto changed without regenerating fails the check; generating mends it and removes what has no source."""
    change(tree / "protos/llamaherd/v1/model.proto", "  uint32 prompt_tokens = 1;", "  uint64 prompt_tokens = 1;")
    stale = tree / GENERATED / "gone_pb2.py"
    stale.touch()

    found = run("scripts/protos.sh", "--check", cwd=tree)
    assert found.returncode == 1
    assert "model_pb2.py" in found.stdout
    assert "gone_pb2.py" in found.stdout

    assert run("scripts/protos.sh", cwd=tree).returncode == 0
    assert run("scripts/protos.sh", "--check", cwd=tree).returncode == 0
    assert not stale.exists()
    assert (tree / GENERATED / "__init__.py").read_bytes() == b""
    assert not (tree / GENERATED.parent / "__init__.py").exists()


def change(path: Path, old: str, new: str) -> None:
    """Replace one line of a file."""
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
