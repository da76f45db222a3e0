"""The caller's trace context, if the caller has OpenTelemetry."""

from llamaherd.client.connection import Metadata

try:
    from opentelemetry import propagate
except ImportError:  # it is no dependency of ours

    def trace_metadata() -> Metadata:
        """Nothing: there is no trace to belong to."""
        return ()

else:

    def trace_metadata() -> Metadata:
        """The current span as metadata (W3C traceparent and tracestate), so that the gateway's span is its child."""
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        return tuple(carrier.items())
