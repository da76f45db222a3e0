"""Trace context as it rides in a job's own field (W3C traceparent and tracestate)."""

from collections.abc import Mapping

from opentelemetry import propagate
from opentelemetry.context import Context


def inject_context() -> dict[str, str]:
    """The current trace context, as a job carries it."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier


def extract_context(carrier: Mapping[str, str]) -> Context:
    """The context a job carries; the empty one if it carries none."""
    return propagate.extract(dict(carrier))
