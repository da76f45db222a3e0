"""The spans of an attempt: where they hang, when they begin and end, what they say."""

import dataclasses
import time

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from contract.broker import Delivered, Taken
from telemetry import names
from tests.worker.double_engine_process import double_bundle
from tests.worker.rig import make_job
from worker import spans
from worker.attempt import Attempt
from worker.bundle import token_pieces
from worker.engine.sequence import FinishEvent, FinishReason, TokenEvent
from worker.holdings import Parting

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Where the spans of this test go."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(spans, "_tracer", provider.get_tracer("test"))
    return exporter


def an_attempt() -> Attempt:
    """Accepted 5 s before it was taken; taken 3 s ago; prefilled in 1 s; one token 1 s later; then the end."""
    job = dataclasses.replace(make_job([1, 2, 3], 10), trace_context={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"})
    taken = Taken(
        job=job,
        lease="1",
        entry=Delivered("q", "1-0", job.generation_id),
        attempt=1,
        num_tokens=0,
        chain=0,
        cancel=False,
        accepted_ms=1_000_000,
        deadline_ms=9_000_000,
        now_ms=1_005_000,
    )
    attempt = Attempt(taken, token_pieces(double_bundle()), taken_s=time.monotonic() - 3)
    attempt.started_s = attempt.taken_s
    attempt.prefilled_s = attempt.taken_s + 1
    attempt.push(TokenEvent("1", 0, 0, 7, "x", -0.1))
    attempt.last_token_s = attempt.taken_s + 2
    attempt.close(FinishEvent("1", 0, FinishReason.EOS, None, ""))
    return attempt


def seconds(span: ReadableSpan) -> float:
    """How long the span is."""
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_queue_and_attempt_hang_under_the_rpc_with_their_real_lengths(exported: InMemorySpanExporter) -> None:
    """Queue ends where attempt begins; prefill and decode lie inside; all in the job's trace."""
    attempt = an_attempt()
    spans.record_queue(attempt)
    spans.record_attempt(attempt, Parting.ENDED, "w1")
    found = {span.name: span for span in exported.get_finished_spans()}

    assert {f"{span.context.trace_id:032x}" for span in found.values() if span.context} == {TRACE_ID}
    for name in (names.SPAN_QUEUE, names.SPAN_ATTEMPT):
        parent = found[name].parent
        assert parent is not None
        assert f"{parent.span_id:016x}" == PARENT_ID
    for name in (names.SPAN_PREFILL, names.SPAN_DECODE):
        parent, attempt_context = found[name].parent, found[names.SPAN_ATTEMPT].context
        assert parent is not None
        assert attempt_context is not None
        assert parent.span_id == attempt_context.span_id
    lengths = {name: round(seconds(span), 1) for name, span in found.items()}
    assert lengths == {
        names.SPAN_QUEUE: 5.0,
        names.SPAN_ATTEMPT: 3.0,
        names.SPAN_PREFILL: 1.0,
        names.SPAN_DECODE: 1.0,
    }


def test_the_attempt_says_who_did_what(exported: InMemorySpanExporter) -> None:
    """Counts, attempt, worker and end; never a token or a text."""
    spans.record_attempt(an_attempt(), Parting.ENDED, "w1")
    (span,) = [each for each in exported.get_finished_spans() if each.name == names.SPAN_ATTEMPT]
    said = dict(span.attributes or {})
    del said[names.ATTR_GENERATION_ID]
    assert said == {
        names.ATTR_WORKER_ID: "w1",
        names.ATTR_ATTEMPT: 1,
        names.ATTR_PROMPT_TOKENS: 3,
        names.ATTR_OUTPUT_TOKENS: 1,
        names.ATTR_FINISH_REASON: "EOS",
    }
    assert span.status.is_ok or span.status.is_unset


def test_a_lost_lease_is_an_error_of_the_attempt(exported: InMemorySpanExporter) -> None:
    """The next attempt is a span of its own beside it."""
    attempt = an_attempt()
    attempt.finishes.clear()
    attempt.end = None
    spans.record_attempt(attempt, Parting.LEASE_LOST, "w1")
    (span,) = [each for each in exported.get_finished_spans() if each.name == names.SPAN_ATTEMPT]
    assert not span.status.is_ok
    assert span.attributes is not None
    assert span.attributes[names.ATTR_FINISH_REASON] == "lease lost"
