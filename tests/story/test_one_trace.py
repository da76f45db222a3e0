"""One trace id crosses client, gateway and worker."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE

from telemetry import names
from tests.herd_process import ROOT, herd_up
from tests.otlp_receiver import ReceivedSpan, otlp_receiver
from tests.until import until


async def test_one_trace_spans_three_processes() -> None:
    """Spans of three operating-system processes arrive at a collector under one trace id, each with its parent."""
    with otlp_receiver() as receiver:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        with herd_up("--device", "cpu", env=env) as herd:
            command = [sys.executable, "-m", "herd", "generate", "Count to ten", "--trace", "--address", herd.address]
            asked = await asyncio.create_subprocess_exec(
                *command, cwd=ROOT, env={**os.environ, **env}, stdout=PIPE, stderr=PIPE
            )
            _, said = await asyncio.wait_for(asked.communicate(), 60)
            trace_id = said.decode().split("trace id: ")[1].split()[0]

            def ours() -> dict[str, ReceivedSpan]:
                return {span.name: span for span in receiver.spans if span.trace_id == trace_id}

            wanted = {names.SPAN_CLIENT, names.SPAN_RPC, names.SPAN_QUEUE, names.SPAN_ATTEMPT}
            wanted |= {names.SPAN_PREFILL, names.SPAN_DECODE}
            await until(lambda: wanted <= ours().keys(), timeout_s=30)
        spans = ours()

    assert said.decode().splitlines() == [f"trace id: {trace_id}"], "nothing else is said"
    assert len({span.pid for span in spans.values()}) == 3
    assert spans[names.SPAN_RPC].parent_id == spans[names.SPAN_CLIENT].span_id
    assert spans[names.SPAN_QUEUE].parent_id == spans[names.SPAN_RPC].span_id
    assert spans[names.SPAN_ATTEMPT].parent_id == spans[names.SPAN_RPC].span_id
    assert spans[names.SPAN_PREFILL].parent_id == spans[names.SPAN_ATTEMPT].span_id
    assert spans[names.SPAN_DECODE].parent_id == spans[names.SPAN_ATTEMPT].span_id
    for span in spans.values():
        assert span.start_ns <= span.end_ns
        assert not any("Count to ten" in str(value) for value in span.attributes.values()), "prompts stay out of traces"
