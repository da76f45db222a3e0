"""A real OTLP/HTTP receiver, as a collector offers it: POST /v1/traces and /v1/metrics, protobuf, gzip or plain."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """A span as it arrived, with what its process said of itself."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    service: str
    pid: int
    attributes: dict[str, object]


@dataclass(frozen=True, slots=True)
class ReceivedPoint:
    """A value of a metric as it arrived: a sum or a gauge, or how many observations a histogram has.

    Attributes:
        bounds: a histogram's bucket boundaries.
    """

    name: str
    unit: str
    service: str
    value: float
    bounds: tuple[float, ...]
    attributes: dict[str, object]


@dataclass(slots=True)
class Receiver:
    """Everything received so far, by any thread."""

    endpoint: str
    spans: list[ReceivedSpan] = field(default_factory=list)
    points: list[ReceivedPoint] = field(default_factory=list)


@contextmanager
def otlp_receiver() -> Iterator[Receiver]:
    """Listen on a free loopback port."""
    receiver = Receiver("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            answer: ExportTraceServiceResponse | ExportMetricsServiceResponse = ExportTraceServiceResponse()
            if self.path == "/v1/traces":
                receiver.spans.extend(_parse(body))
            elif self.path == "/v1/metrics":
                receiver.points.extend(_parse_metrics(body))
                answer = ExportMetricsServiceResponse()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.end_headers()
            self.wfile.write(answer.SerializeToString())

        def log_message(self, format: str, *arguments: object) -> None:
            """Quiet: a request is no event of the test."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()


def _parse(body: bytes) -> Iterator[ReceivedSpan]:
    for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
        said = {a.key: a.value for a in resource_spans.resource.attributes}
        for scope in resource_spans.scope_spans:
            for span in scope.spans:
                yield ReceivedSpan(
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    service=said["service.name"].string_value,
                    pid=said["process.pid"].int_value,
                    attributes=_values_of(span.attributes),
                )


def _parse_metrics(body: bytes) -> Iterator[ReceivedPoint]:
    for resource_metrics in ExportMetricsServiceRequest.FromString(body).resource_metrics:
        (service,) = (a.value.string_value for a in resource_metrics.resource.attributes if a.key == "service.name")
        for metric in (metric for scope in resource_metrics.scope_metrics for metric in scope.metrics):
            kind = metric.WhichOneof("data")
            for point in getattr(metric, kind).data_points:
                is_histogram = kind == "histogram"
                value = point.count if is_histogram else getattr(point, point.WhichOneof("value"))
                bounds = tuple(point.explicit_bounds) if is_histogram else ()
                yield ReceivedPoint(
                    metric.name, metric.unit, service, float(value), bounds, _values_of(point.attributes)
                )


def _values_of(attributes: Any) -> dict[str, object]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value") or "string_value") for a in attributes}
