"""Prints the table of all metrics from telemetry/names.py; with --write puts it between its markers."""

import sys
from pathlib import Path

from telemetry.names import METRICS, Metric, prometheus_label

README = Path(__file__).parent.parent / "monitoring" / "README.md"
BEGIN, END = "<!-- metrics -->\n", "<!-- /metrics -->"
HEAD = "| metric | in Prometheus | kind | told by | labels | what |\n|---|---|---|---|---|---|\n"


def table() -> str:
    """One row for each metric."""
    return HEAD + "".join(_row(metric) for metric in METRICS)


def written(readme: str) -> str:
    """The document with the table as it should be."""
    head, _, rest = readme.partition(BEGIN)
    return f"{head}{BEGIN}{table()}{END}{rest.partition(END)[2]}"


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{prometheus_label(label)}`" for label in metric.labels)
    sources = ", ".join(metric.sources)
    kind = f"{metric.kind}, {metric.unit}"
    return f"| `{metric.name}` | `{metric.prometheus_name}` | {kind} | {sources} | {labels} | {metric.description} |\n"


if __name__ == "__main__":
    if "--write" in sys.argv:
        README.write_text(written(README.read_text()))
    else:
        print(table())
