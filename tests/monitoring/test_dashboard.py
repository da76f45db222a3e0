"""The dashboard: made of the names there are, and every query one that Prometheus understands."""

import json
from pathlib import Path
from typing import Any

import yaml

from scripts import dashboard
from telemetry import names
from telemetry.names import METRICS
from tests.monitoring.test_alerts import names_in, promtool, series_names


def queries() -> list[str]:
    """Of all panels, as the committed file has them."""
    return [target["expr"] for panel in load()["panels"] for target in panel["targets"]]


def load() -> Any:
    """The committed file."""
    return json.loads(dashboard.DASHBOARD.read_text())


def test_the_file_is_what_the_script_makes() -> None:
    """`python -m scripts.dashboard --write` makes it so."""
    assert dashboard.DASHBOARD.read_text() == dashboard.written()


def test_panels_ask_for_every_metric_and_for_no_other() -> None:
    """What is measured and shown nowhere is not measured for anybody."""
    asked = {name for query in queries() for name in names_in(query)}

    assert asked <= series_names()
    unseen = {m.name for m in METRICS if not any(name.startswith(m.prometheus_name) for name in asked)}
    assert unseen == set()


def test_queries_select_by_labels_that_their_metrics_have() -> None:
    """A selector for a label that is not there finds nothing, and says nothing."""
    for metric in METRICS:
        has_model = names.ATTR_REQUEST_MODEL in metric.labels
        for query in queries():
            if f"{metric.prometheus_name}{dashboard.OF_MODEL}" in query:
                assert has_model, query


def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    """As rules, with Grafana's variables filled in."""
    filled = [query.replace("$__rate_interval", "1m").replace("$model", ".*") for query in queries()]
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(filled)]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))

    assert f"{len(rules)} rules found" in promtool("check", "rules", str(path))


def test_panels_do_not_overlap() -> None:
    """Each has an id and a place of its own."""
    panels = load()["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}

    assert len(places) == len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= dashboard.COLUMNS for panel in panels)
