"""bench/serving.py measures what it says: a real herd over the demo model, and its engine alone."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FLAGS = "--streams 1 3 --starts 1 --rounds 2 --prompt 12 --new 5 --vocabulary 900 --readers 2 --device cpu"


def test_the_service_against_its_engine_alone(tmp_path: Path) -> None:
    """One start, and a row for each number of streams on both sides; every stream is right."""
    figures = tmp_path / "serving.json"
    command = [sys.executable, "-m", "bench.serving", "--folders", "herd/demo_model", *FLAGS.split()]
    subprocess.run([*command, "--out", str(figures)], cwd=ROOT, check=True, stdout=subprocess.PIPE, timeout=250)

    found = json.loads(figures.read_text())
    alone, service = found["engine alone"], found["service"]
    assert [(row["streams"], row["tokens"], row["wrong"]) for row in alone] == [(1, 10, 0), (3, 30, 0)]
    assert [(row["streams"], row["tokens"], row["wrong"]) for row in service] == [(1, 10, 0), (3, 30, 0)]
    assert all(row["kept"] > 0 and row["times"] == 1 and len(row) == len(service[0]) for row in service)
    assert [row["first_token_s"] > row["ready_s"] for row in found["start"]] == [True]
