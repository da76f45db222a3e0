"""Prints the Grafana dashboard, made of the names in telemetry/names.py; with --write puts it into monitoring/."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telemetry import names
from telemetry.names import Metric, prometheus_label

DASHBOARD = Path(__file__).parent.parent / "monitoring" / "dashboard.json"
COLUMNS, WIDTH, HEIGHT = 24, 8, 8
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
MODEL = prometheus_label(names.ATTR_REQUEST_MODEL)
PRIORITY = prometheus_label(names.ATTR_PRIORITY)
TOKEN_TYPE = prometheus_label(names.ATTR_TOKEN_TYPE)
CODE = prometheus_label(names.ATTR_RPC_STATUS)
WEAKNESS = prometheus_label(names.ATTR_REDIS_WEAKNESS)
ERROR = prometheus_label(names.ATTR_ERROR_TYPE)
OF_MODEL = f'{{{MODEL}=~"$model"}}'


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph: each query with its legend."""

    title: str
    unit: str  # as Grafana names units
    queries: Sequence[tuple[str, str]]
    text: str = ""


def rate(metric: Metric, suffix: str = "") -> str:
    """What a counter, or a part of a histogram, grows by in a second."""
    selector = OF_MODEL if names.ATTR_REQUEST_MODEL in metric.labels else ""
    return f"rate({metric.prometheus_name}{suffix}{selector}[$__rate_interval])"


def quantiles(metric: Metric) -> list[tuple[str, str]]:
    """The median, p95 and p99 of a histogram, by model."""
    by_bucket = f"sum by (le, {MODEL}) ({rate(metric, '_bucket')})"
    shares = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    return [(f"histogram_quantile({share}, {by_bucket})", f"{name} {{{{{MODEL}}}}}") for name, share in shares]


def mean(metric: Metric) -> str:
    """The mean of a histogram, by model."""
    return f"sum by ({MODEL}) ({rate(metric, '_sum')}) / sum by ({MODEL}) ({rate(metric, '_count')})"


def added(metric: Metric) -> tuple[str, str]:
    """What a counter grew by within five minutes; these are rare."""
    label = MODEL if names.ATTR_REQUEST_MODEL in metric.labels else "job"
    selector = OF_MODEL if label == MODEL else ""
    event = metric.name.removeprefix("llamaherd.")
    return f"sum by ({label}) (increase({metric.prometheus_name}{selector}[5m]))", f"{event} {{{{{label}}}}}"


def gauge(metric: Metric, how: str = "sum", by: str = MODEL) -> str:
    """A gauge over all processes that tell it; `max` for what each of them sees of the same thing."""
    selector = OF_MODEL if names.ATTR_REQUEST_MODEL in metric.labels else ""
    return f"{how} by ({by}) ({metric.prometheus_name}{selector})"


def panels() -> Iterator[Panel]:
    """In the order of the questions: is it well, is it fast, what waits, what do the devices do, what went wrong."""
    model = f"{{{{{MODEL}}}}}"
    yield Panel("Live workers", "short", [(gauge(names.LIVE_WORKERS, "max"), model)], "as the gateways see them")
    yield Panel("Streams", "short", [(f"sum({names.STREAMS.prometheus_name})", "streams")])
    requests = f"sum by ({CODE}) ({rate(names.RPC_DURATION, '_count')})"
    yield Panel("RPCs by code", "reqps", [(requests, f"{{{{{CODE}}}}}")])
    yield Panel("Time to first token", "s", quantiles(names.TIME_TO_FIRST_TOKEN))
    yield Panel("Time per output token", "s", quantiles(names.TIME_PER_OUTPUT_TOKEN), "mean of each generation")
    yield Panel("Request duration", "s", quantiles(names.REQUEST_DURATION))
    by_type = f"sum by ({MODEL}, {TOKEN_TYPE}) ({rate(names.TOKENS)})"
    sent = (f"sum({rate(names.SENT_TOKENS)})", "sent to readers")
    yield Panel("Tokens a second", "short", [(by_type, f"{{{{{TOKEN_TYPE}}}}} {model}"), sent])
    depth = gauge(names.QUEUE_DEPTH, "max", f"{MODEL}, {PRIORITY}")
    yield Panel("Queue depth", "short", [(depth, f"{model} {{{{{PRIORITY}}}}}")], "jobs that no worker holds")
    yield Panel("Queue time", "s", quantiles(names.QUEUE_DURATION))
    running = [(gauge(names.RUNNING), f"running {model}"), (gauge(names.SLOTS), f"slots {model}")]
    yield Panel("Running sequences", "short", running)
    kv = f"{gauge(names.KV_USED)} / {gauge(names.KV_TOTAL)}"
    yield Panel("KV cache in use", "percentunit", [(kv, model)])
    yield Panel("Batch size", "short", [(mean(names.BATCH_SIZE), f"mean {model}"), *quantiles(names.BATCH_SIZE)])
    yield Panel("Step time", "s", quantiles(names.STEP_DURATION))
    usage = f"sum by ({MODEL}, {TOKEN_TYPE}) ({rate(names.TOKEN_USAGE, '_sum')})"
    count = f"sum by ({MODEL}, {TOKEN_TYPE}) ({rate(names.TOKEN_USAGE, '_count')})"
    yield Panel("Tokens of a generation", "short", [(f"{usage} / {count}", f"mean {{{{{TOKEN_TYPE}}}}} {model}")])
    yield Panel("Preemptions", "short", [added(names.PREEMPTIONS)], "in 5 minutes")
    continued = [added(each) for each in (names.REDELIVERIES, names.LEASE_LOSSES, names.REAPS, names.ENGINE_RESTARTS)]
    yield Panel("Redeliveries, lease losses, deaths", "short", continued, "in 5 minutes")
    outages = [added(each) for each in (names.REDIS_OUTAGES, names.LOG_FILLS, names.STALLED_READERS)]
    yield Panel("Redis outages, log reads, stalled readers", "short", outages, "in 5 minutes")
    weak = gauge(names.REDIS_WEAKNESSES, "max", WEAKNESS)
    yield Panel("Redis breaks a promise", "short", [(weak, f"{{{{{WEAKNESS}}}}}")], "1 while it does; see OPERATING.md")
    dead = (f"max({names.DEAD_LETTERS.prometheus_name})", "set aside in all")
    yield Panel("Poison", "short", [added(names.POISON), dead], "jobs that kept killing workers, or cannot be read")
    failed = f'{names.RPC_DURATION.prometheus_name}_count{{{ERROR}!=""}}'
    wrong = f"sum by ({CODE}, {ERROR}) (rate({failed}[$__rate_interval]))"
    yield Panel("Errors by code and reason", "reqps", [(wrong, f"{{{{{CODE}}}}} {{{{{ERROR}}}}}")])


def dashboard() -> dict[str, Any]:
    """As Grafana imports it."""
    return {
        "uid": "llamaherd",
        "title": "llamaherd",
        "tags": ["llamaherd"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
                {
                    "name": "model",
                    "type": "query",
                    "label": "model",
                    "datasource": DATASOURCE,
                    "query": f"label_values({names.LIVE_WORKERS.prometheus_name}, {MODEL})",
                    "refresh": 2,
                    "includeAll": True,
                    "allValue": ".*",
                    "multi": True,
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": [_placed(panel, number) for number, panel in enumerate(panels())],
    }


def written() -> str:
    """The file as it should be."""
    return json.dumps(dashboard(), indent=1) + "\n"


def _placed(panel: Panel, number: int) -> dict[str, Any]:
    row, column = divmod(number, COLUMNS // WIDTH)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.text,
        "datasource": DATASOURCE,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": DATASOURCE, "expr": query, "legendFormat": legend}
            for place, (query, legend) in enumerate(panel.queries)
        ],
    }


if __name__ == "__main__":
    if "--write" in sys.argv:
        DASHBOARD.write_text(written())
    else:
        print(written(), end="")
