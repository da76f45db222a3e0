"""bench/chat.py measures what it says: real processes, every token checked."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_idle_and_active_conversations_at_one_gateway(tmp_path: Path) -> None:
    """Four rows; the idle ones have had one turn each, the active ones some."""
    figures = tmp_path / "figures.json"
    flags = "--idle 6 --active 2 --readers 1 --every-ms 200 --step-ms 2 --new 8 --warm-up 0.2 --duration 0.5"
    command = [sys.executable, "-m", "bench.chat", *flags.split(), "--json", str(figures)]

    said = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=120).stdout

    assert "an idle conversation: " in said
    told = json.loads(figures.read_text())
    rows = told["rows"]
    assert [(row["idle"], row["active"]) for row in rows] == [(0, 2), (0, 0), (6, 0), (6, 2)]
    assert [row["num_wrong"] for row in rows] == [0, 0, 0, 0]
    assert rows[0]["turns"] >= 2
    assert rows[3]["turns"] >= 8
    assert told["idle_conversation"]["session_bytes"] > 0
