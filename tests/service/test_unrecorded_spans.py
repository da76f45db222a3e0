"""Spans of a process that none leaves: ids and contexts, and nothing else."""

import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState
from opentelemetry.trace.propagation import set_span_in_context

from telemetry.unrecorded import UnrecordedSpans
from tests.herd_process import ROOT
from tests.service.test_process import environment

tracer = UnrecordedSpans().get_tracer("test")


def test_a_root_begins_a_trace_that_others_may_record() -> None:
    """Each has its own, and nothing is recorded of it here."""
    first, second = (tracer.start_span("root") for _ in range(2))

    assert first.get_span_context().is_valid
    assert first.get_span_context().trace_flags.sampled
    assert first.get_span_context().trace_id != second.get_span_context().trace_id
    assert not first.is_recording()


@pytest.mark.parametrize("flags", [TraceFlags.DEFAULT, TraceFlags.SAMPLED])
def test_a_child_is_in_its_parents_trace(flags: int) -> None:
    """And is sampled if that is; what others put into the trace's state goes on."""
    parent = SpanContext(7, 9, True, TraceFlags(flags), TraceState([("vendor", "x")]))

    with tracer.start_as_current_span("child", set_span_in_context(NonRecordingSpan(parent))) as child:
        assert trace.get_current_span() is child

    context = child.get_span_context()
    assert (context.trace_id, context.trace_flags, context.trace_state) == (7, flags, parent.trace_state)
    assert context.span_id not in (0, 9)
    assert trace.get_current_span() is not child


@pytest.mark.parametrize(("sampler", "is_sampled"), [("", True), ("always_off", False), ("always_on", True)])
def test_a_sampler_of_the_operators_decides_for_what_comes_behind(sampler: str, is_sampled: bool) -> None:
    """Also where no span leaves this process: the next one in the trace may have a collector."""
    program = """
from opentelemetry import trace
from contract.trace import inject_context
from telemetry.setup import start_tracing

start_tracing("tester")
with trace.get_tracer("t").start_as_current_span("work"):
    print(inject_context()["traceparent"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment(OTEL_TRACES_SAMPLER=sampler),
        capture_output=True,
        text=True,
        check=True,
    )
    flags = int(done.stdout.strip().rpartition("-")[2], 16)
    assert bool(flags & TraceFlags.SAMPLED) == is_sampled
