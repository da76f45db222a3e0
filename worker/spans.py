"""The spans of one attempt, made of times that were noted on the way: queue, attempt, prefill, decode.

They are made when their end is known, with explicit times; the trace context is the one that the job carries.
"""

import time

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from contract.messages import EndReason
from contract.trace import extract_context
from telemetry import names
from worker.attempt import Attempt
from worker.holdings import Parting

_NS = 1_000_000_000
_tracer = trace.get_tracer("llamaherd.worker")


def record_queue(attempt: Attempt) -> None:
    """From acceptance to the first take. Both are Redis times, so the span is as long as the wait really was."""
    taken = attempt.taken
    end_ns = _wall_ns(attempt.taken_s)
    span = _tracer.start_span(
        names.SPAN_QUEUE,
        context=extract_context(taken.job.trace_context),
        kind=SpanKind.CONSUMER,
        start_time=end_ns - (taken.now_ms - taken.accepted_ms) * 1_000_000,
        attributes={names.ATTR_GENERATION_ID: attempt.generation_id, names.ATTR_PRIORITY: taken.job.job_class},
    )
    span.end(end_ns)


def record_attempt(attempt: Attempt, parting: Parting, worker_id: str) -> None:
    """From the take to the parting, with prefill and decode inside."""
    taken = attempt.taken
    end_ns = time.time_ns()
    span = _tracer.start_span(
        names.SPAN_ATTEMPT,
        context=extract_context(taken.job.trace_context),
        kind=SpanKind.CONSUMER,
        start_time=_wall_ns(attempt.taken_s),
        attributes={
            names.ATTR_GENERATION_ID: attempt.generation_id,
            names.ATTR_WORKER_ID: worker_id,
            names.ATTR_ATTEMPT: taken.attempt,
            names.ATTR_PROMPT_TOKENS: len(taken.job.prompt_ids),
            names.ATTR_OUTPUT_TOKENS: _num_new(attempt),
            names.ATTR_FINISH_REASON: _reasons(attempt) or parting.value,
        },
    )
    if parting is Parting.LEASE_LOST or attempt.end is EndReason.FAILED:
        span.set_status(Status(StatusCode.ERROR, parting.value))
    inside = trace.set_span_in_context(span)
    for name, start_s, stop_s in (
        (names.SPAN_PREFILL, attempt.started_s, attempt.prefilled_s),
        (names.SPAN_DECODE, attempt.prefilled_s, attempt.last_token_s),
    ):
        if start_s is not None and stop_s is not None:
            part = _tracer.start_span(name, context=inside, start_time=_wall_ns(start_s))
            part.end(_wall_ns(stop_s))
    span.end(end_ns)


def _num_new(attempt: Attempt) -> int:
    """Tokens that this attempt generated."""
    job = attempt.job
    return job.num_output(len(attempt.tokens)) - job.num_output(attempt.num_at_start)


def _reasons(attempt: Attempt) -> str:
    """Why its choices ended, each reason once."""
    return ",".join(sorted({each.reason.name for each in attempt.finishes.values()}))


def _wall_ns(monotonic_s: float) -> int:
    """This process' wall clock when its monotonic clock said `monotonic_s`."""
    return time.time_ns() - int((time.monotonic() - monotonic_s) * _NS)
