"""Starts tracing in a process, by the standard OTEL_* variables. Spans and metrics leave over OTLP http/protobuf only.

Never over gRPC: the worker must not load it. Without an endpoint spans are made, so that traces have ids and contexts
cross the hops, and are not recorded (telemetry/unrecorded.py).
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from telemetry.unrecorded import UnrecordedSpans

PROCESS_PID = "process.pid"
FLUSH_TIMEOUT_S = 3.0  # a collector that is down must not hold up the end of a process for longer

_log = logging.getLogger(__name__)


def start_tracing(service_name: str) -> Callable[[], None]:
    """Install this process' tracer provider, once, before the first span.

    Args:
        service_name: what the process calls itself; OTEL_SERVICE_NAME goes before it.

    Returns:
        The function that sends what is left, for at most FLUSH_TIMEOUT_S; call it last.
    """
    environ = os.environ
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return _nothing_to_flush
    if not exports(environ, "TRACES"):
        has_sampler = bool(environ.get("OTEL_TRACES_SAMPLER"))  # which decides for the processes behind this one too
        trace.set_tracer_provider(TracerProvider() if has_sampler else UnrecordedSpans())
        return _nothing_to_flush
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    provider = TracerProvider(resource=resource_of(service_name), shutdown_on_exit=False)
    trace.set_tracer_provider(provider)
    exporter = OTLPSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(exporter))

    def stop_tracing() -> None:
        flush = threading.Thread(target=provider.force_flush, name="flush-spans", daemon=True)
        flush.start()
        flush.join(FLUSH_TIMEOUT_S)  # force_flush's own bound does not reach an export that is being retried
        if flush.is_alive():  # ends the retry; the SDK states no return type
            exporter.shutdown()  # type: ignore[no-untyped-call]
        provider.shutdown()

    return stop_tracing


def resource_of(service_name: str) -> Resource:
    """Who this process is. OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME go before `service_name`."""
    stated = Resource.create({PROCESS_PID: os.getpid()})  # reads the environment; an unset name is "unknown_service"
    if str(stated.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return stated.merge(Resource({SERVICE_NAME: service_name}))
    return stated


def exports(environ: Mapping[str, str], signal: str) -> bool:
    """Whether a signal leaves the process over OTLP: by default if and only if an endpoint is set.

    Args:
        signal: TRACES or METRICS, as the names of the standard variables have it.
    """
    wanted = [name.strip() for name in environ.get(f"OTEL_{signal}_EXPORTER", "").split(",") if name.strip()]
    if unknown := sorted(set(wanted) - {"otlp", "none"}):
        _log.warning("OTEL_%s_EXPORTER names %s; only otlp and none are known", signal, ", ".join(unknown))
    protocol = environ.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol and protocol != "http/protobuf":
        _log.warning("OTLP protocol %s is asked for; %s go over http/protobuf", protocol, signal.lower())
    if wanted:
        return "otlp" in wanted
    return bool(environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"))


def _nothing_to_flush() -> None:
    """No span leaves this process."""
