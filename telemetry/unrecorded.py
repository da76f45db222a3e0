"""Spans that are not recorded, for a process that none leaves.

They have ids, so that contexts cross the hops and log lines have their trace. The SDK's own would keep every attribute
until they end, for nobody.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    TraceFlags,
    Tracer,
    TracerProvider,
    get_current_span,
    use_span,
)
from opentelemetry.util.types import Attributes

if TYPE_CHECKING:
    from opentelemetry.util._decorator import _AgnosticContextManager

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class UnrecordedSpans(TracerProvider):
    """For `trace.set_tracer_provider`."""

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> Tracer:
        """The same for every module."""
        return _Tracer()


class _Tracer(Tracer):
    """A root is sampled, a child is what its parent is: others of its trace may be recorded where they are made."""

    def __init__(self) -> None:
        self._ids = RandomIdGenerator()

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> Span:
        """One with a new id in the context's trace, or in a trace of its own."""
        parent, span_id = get_current_span(context).get_span_context(), self._ids.generate_span_id()
        if parent.is_valid:
            return NonRecordingSpan(
                SpanContext(parent.trace_id, span_id, False, parent.trace_flags, parent.trace_state)
            )
        return NonRecordingSpan(SpanContext(self._ids.generate_trace_id(), span_id, False, _SAMPLED))

    def start_as_current_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
    ) -> "_AgnosticContextManager[Span]":
        """The same, current for the length of the block."""
        return use_span(self.start_span(name, context))
