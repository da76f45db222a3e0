"""Metrics of a process: instruments by their names, and where they go: OTLP over http/protobuf, Prometheus, or nowhere.

Until `start_metrics` has been called, and where nothing reads them, instruments do nothing.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Observation
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader

from telemetry.names import Kind, Metric
from telemetry.setup import FLUSH_TIMEOUT_S, exports, resource_of

if TYPE_CHECKING:
    from telemetry.scrape import ScrapeServer

SCRAPE_PATH = "/metrics"

Labels = Mapping[str, str]
Reading = tuple[float, Labels]

_meter = metrics.get_meter("llamaherd")


class Endpoint(NamedTuple):
    """Where Prometheus may ask; port 0 takes a free one."""

    host: str
    port: int


def endpoint(host: str, port: int) -> Endpoint | None:
    """The endpoint of a process' settings, where port 0 opens none."""
    return Endpoint(host, port) if port else None


class RunningMetrics:
    """The readers of this process' metrics.

    Attributes:
        port: where Prometheus may ask; 0 if it may not.
    """

    def __init__(self, provider: MeterProvider | None, server: "ScrapeServer | None") -> None:
        self._provider = provider
        self._server = server
        self.port = server.port if server else 0

    def stop(self) -> None:
        """Send what is left, for at most FLUSH_TIMEOUT_S; call it last."""
        if self._server is not None:
            self._server.close()
        if self._provider is not None:
            flush = threading.Thread(target=self._provider.shutdown, name="flush-metrics", daemon=True)
            flush.start()
            flush.join(FLUSH_TIMEOUT_S)  # the SDK's own bound does not reach an export that is being retried


def nothing_more() -> bytes:
    """No text of others."""
    return b""


def start_metrics(
    service_name: str, where: Endpoint | None, more: Callable[[], bytes] = nothing_more
) -> RunningMetrics:
    """Install this process' meter provider, once.

    Args:
        service_name: what the process calls itself; OTEL_SERVICE_NAME goes before it.
        where: where Prometheus may ask; None is nowhere.
        more: what else is told there, in Prometheus' text format, of families that this process has none of.

    Raises OSError if the endpoint cannot be bound.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return RunningMetrics(None, None)
    readers: list[MetricReader] = []
    server = None
    if where is not None:
        from telemetry.scrape import serve_metrics

        reader, server = serve_metrics(where.host, where.port, more)
        readers.append(reader)
    if exports(os.environ, "METRICS"):
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        readers.append(PeriodicExportingMetricReader(OTLPMetricExporter()))
    if not readers:
        return RunningMetrics(None, None)
    provider = MeterProvider(
        readers,
        resource_of(service_name),
        exemplar_filter=AlwaysOffExemplarFilter(),
        shutdown_on_exit=False,
    )
    metrics.set_meter_provider(provider)
    return RunningMetrics(provider, server)


def counter(metric: Metric) -> Counter:
    """An instrument that is added to. Add 0 for each label once: an increase from nothing is none to Prometheus."""
    assert metric.kind is Kind.COUNTER
    return _meter.create_counter(metric.name, metric.unit, metric.description)


def histogram(metric: Metric) -> Histogram:
    """An instrument that values are recorded in; about 6 µs each where they are read, so not for every token."""
    assert metric.kind is Kind.HISTOGRAM
    return _meter.create_histogram(
        metric.name, metric.unit, metric.description, explicit_bucket_boundaries_advisory=metric.buckets
    )


def observe(metric: Metric, read: Callable[[], Iterable[Reading]]) -> None:
    """A gauge, or a counter that is kept elsewhere.

    Args:
        read: called on another thread whenever the values are wanted; must not block.
    """

    def observations(_: CallbackOptions) -> Iterator[Observation]:
        return (Observation(value, labels) for value, labels in read())

    if metric.kind is Kind.GAUGE:
        _meter.create_observable_gauge(metric.name, [observations], metric.unit, metric.description)
    else:
        assert metric.kind is Kind.COUNTER
        _meter.create_observable_counter(metric.name, [observations], metric.unit, metric.description)
