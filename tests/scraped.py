"""What a process tells Prometheus, asked for as Prometheus does."""

import http.client
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from telemetry.names import Kind, Metric, prometheus_label


@dataclass(frozen=True, slots=True)
class Scrape:
    """Every sample of one answer, by its name and labels."""

    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    def value(self, metric: Metric, suffix: str = "", **labels: str) -> float:
        """The sum of a metric's samples with these labels, 0 if there is none; `suffix` says which of a histogram."""
        wanted = set(labels.items())
        name = metric.prometheus_name + suffix
        return sum(value for (each, have), value in self.samples.items() if each == name and wanted <= have)

    def has(self, metric: Metric) -> bool:
        """Whether the metric has a sample, with no label but its own."""
        name = metric.prometheus_name + ("_count" if metric.kind is Kind.HISTOGRAM else "")
        found = [{key for key, _ in have} for each, have in self.samples if each == name]
        allowed = {prometheus_label(label) for label in metric.labels}
        assert all(keys <= allowed for keys in found), f"{metric.name} has labels {found}"
        return bool(found)


def scrape(port: int) -> Scrape:
    """Ask; every family may stand in the answer once."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    assert answer.status == 200, answer.status
    families = list(text_string_to_metric_families(text))
    seen = [family.name for family in families]
    assert len(seen) == len(set(seen)), f"a family is told twice: {seen}"
    samples = [sample for family in families for sample in family.samples]
    return Scrape({(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples})
