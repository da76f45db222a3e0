"""What the documents say is what the tree holds."""

import re
import subprocess
from pathlib import Path

from llamaherd.v1 import common_pb2
from scripts import metrics_table, settings_table

ROOT = Path(__file__).parents[2]


def test_every_setting_stands_in_the_readme() -> None:
    """`python -m scripts.settings_table --write` makes it so."""
    readme = (ROOT / "README.md").read_text()

    assert settings_table.written(readme) == readme


def test_every_metric_stands_in_its_table() -> None:
    """`python -m scripts.metrics_table --write` makes it so."""
    document = metrics_table.README.read_text()

    assert metrics_table.written(document) == document


def test_every_folder_stands_in_the_readme() -> None:
    """And no other."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = {path.split("/")[0] for path in tracked.splitlines() if "/" in path}
    table = (ROOT / "README.md").read_text().partition("## The tree")[2].partition("## ")[0]
    named = set(re.findall(r"`(\w+)/`", table))

    assert named == folders - {".ci", "scripts"}


def test_every_knob_is_in_the_table_of_knobs() -> None:
    """README.md has every field of Sampling, Stopping and OutputOptions, and no other."""
    section = (ROOT / "README.md").read_text().partition("## The knobs of a request")[2].partition("\n## ")[0]
    named = set(re.findall(r"`((?:sampling|stopping|output)\.\w+)", section))
    fields = {
        f"{part}.{field.name}"
        for part, message in (
            ("sampling", common_pb2.Sampling),
            ("stopping", common_pb2.Stopping),
            ("output", common_pb2.OutputOptions),
        )
        for field in message.DESCRIPTOR.fields
    }

    assert named == fields


def test_every_step_of_the_path_is_a_file() -> None:
    """ARCHITECTURE.md's table of contents exists."""
    table = (
        (ROOT / "ARCHITECTURE.md").read_text().partition("## The path of a request")[2].partition("Three processes")[0]
    )
    steps = re.findall(r"\| \d \| `([^`]+)`", table)

    assert len(steps) == 7
    assert all((ROOT / step).exists() for step in steps)


def test_every_file_that_the_architecture_names_is_there() -> None:
    """By its path, or by its own name where that tells enough; every promise names a test that tries to break it."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    named = re.findall(r"`([\w./]+(?:/|\.py|\.lua|\.cu))`", text)
    promises = text.partition("## What is promised")[2].partition("\nNot promised")[0].splitlines()[3:]
    tests = [row.rpartition(" | ")[2] for row in promises if row]

    def is_there(name: str) -> bool:
        if name.endswith("/"):
            return any(path.startswith(name) for path in tracked)
        return any(f"/{path}".endswith(f"/{name}") for path in tracked)

    assert len(named) > 50
    assert [name for name in named if not is_there(name)] == []
    assert len(tests) > 20
    assert [row for row in tests if "`tests/" not in row] == []
