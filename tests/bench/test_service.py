"""bench/service.py measures what it says: with real processes, every token checked."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.histogram import Histogram
from bench.procfs import parse_cores

ROOT = Path(__file__).parents[2]


def test_two_gateways_carry_every_token(tmp_path: Path) -> None:
    """A row a number of streams; its figures, and the picture."""
    figures, picture = tmp_path / "figures.json", tmp_path / "cost.svg"
    flags = "--gateways 2 --appendfsync no --streams 1,5 --rate 200 --new 20 --warm-up 0.5 --duration 1.5"
    command = [sys.executable, "-m", "bench.service", *flags.split(), "--json", str(figures), "--plot", str(picture)]

    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, timeout=120)

    rows = json.loads(figures.read_text())
    assert [row["streams"] for row in rows] == [1, 5]
    for row in rows:
        assert row["num_wrong"] == 0
        assert row["generations"] > 0
        assert row["rss_mib"].keys() == row["cpu_us_per_token"].keys()
        assert row["rss_mib"].keys() == {"gateway", "engine", "supervisor", "redis", "readers"}
    assert "µs a token" in picture.read_text()


def test_percentiles_are_exact_to_a_bucket() -> None:
    """2 % wide."""
    whole, part = Histogram(), Histogram()
    for milliseconds in range(1, 1001):
        (whole if milliseconds % 2 else part).add(milliseconds / 1000)
    whole.merge(Histogram.from_json(part.to_json()))

    assert whole.percentile_ms(50) == pytest.approx(500, rel=0.02)
    assert whole.percentile_ms(99) == pytest.approx(990, rel=0.02)
    assert Histogram().percentile_ms(50) is None


def test_cores_are_read_as_taskset_reads_them() -> None:
    """And nothing means all."""
    assert parse_cores("0,2-4") == {0, 2, 3, 4}
    assert parse_cores("")
