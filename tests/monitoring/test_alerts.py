"""The alert rules: accepted by Prometheus' own tool, about metrics that exist, each tested by an example."""

import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from telemetry.names import METRICS, Kind
from tests.herd_process import ROOT

MONITORING = ROOT / "monitoring"


def promtool(*arguments: str) -> str:
    """What it says; it comes with Debian's prometheus (scripts/apt-packages.txt)."""
    done = subprocess.run(["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def series_names() -> set[str]:
    """Every name that a query may ask for."""
    suffixes = {Kind.HISTOGRAM: ("_bucket", "_count", "_sum")}
    return {metric.prometheus_name + suffix for metric in METRICS for suffix in suffixes.get(metric.kind, ("",))}


def names_in(query: str) -> set[str]:
    """The metrics of ours that a query asks for: what stands outside of braces and of lists of labels."""
    bare = re.sub(r"\{[^}]*\}|\b(by|without|on|ignoring) *\([^)]*\)", "", query)
    return set(re.findall(r"\b(?:llamaherd|gen_ai|rpc)_\w+", bare))


def load(name: str) -> Any:
    """A YAML file of the folder."""
    return yaml.safe_load((MONITORING / name).read_text())


def rules() -> dict[str, str]:
    """Each alert's name and query."""
    return {rule["alert"]: rule["expr"] for group in load("alerts.yaml")["groups"] for rule in group["rules"]}


def test_prometheus_accepts_its_configuration() -> None:
    """The rules as well: the configuration names their file."""
    assert f"{len(rules())} rules found" in promtool("check", "config", "prometheus.yaml")
    promtool("check", "rules", "alerts.yaml")


def test_each_alert_fires_when_it_should() -> None:
    """By examples of its own, and for nothing else in them."""
    promtool("test", "rules", "alerts_test.yaml")
    tested = {rule["alertname"] for test in load("alerts_test.yaml")["tests"] for rule in test["alert_rule_test"]}

    assert tested == rules().keys()


def test_alerts_ask_for_metrics_that_exist() -> None:
    """Also in their examples."""
    asked = {name for query in rules().values() for name in names_in(query)}
    examples = {
        series["series"].partition("{")[0]
        for test in load("alerts_test.yaml")["tests"]
        for series in test["input_series"]
    }

    assert asked <= series_names()
    assert examples - {"up"} <= series_names()


def test_rules_that_are_wrong_are_found(tmp_path: Path) -> None:
    """The tool is no formality."""
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((MONITORING / "alerts.yaml").read_text().replace("sum(rate(", "sum(rate((", 1))

    done = subprocess.run(["promtool", "check", "rules", str(wrong)], capture_output=True, text=True, check=False)

    assert done.returncode != 0
