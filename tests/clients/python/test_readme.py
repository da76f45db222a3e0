"""The examples of the client's README run, each as a program of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.herd_process import HerdProcess

ROOT = Path(__file__).parents[3]
README = (ROOT / "clients/python/README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=[f"example-{n}" for n in range(1, len(EXAMPLES) + 1)])
def test_an_example_runs(example: str, herd_up: HerdProcess) -> None:
    """Against a real herd, whose address stands in for the README's; warnings are errors here too."""
    program = example.replace("127.0.0.1:50051", herd_up.address)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    if "Count to ten" in example:
        assert "10" in done.stdout


def test_there_are_examples() -> None:
    """The pattern finds them."""
    assert len(EXAMPLES) == README.count("```python") >= 8
