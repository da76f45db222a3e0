"""What a conversation tells of itself: a span for each turn, none for its stream, and how long each turn took."""

from collections import Counter
from collections.abc import Callable

import grpc
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, StatusCode

from contract.broker import Broker
from contract.messages import EndReason
from llamaherd.v1 import chat_pb2, chat_pb2_grpc
from service import chat_session, chat_turn, metrics, rpc
from telemetry import names
from tests.service.gateways import RunningGateway, error_of
from tests.service.scripted_worker import ScriptedWorker
from tests.service.talks import SETUP, Talk, answer, next_work, rest_of
from tests.until import until

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"

Durations = Callable[[], dict[str, int]]


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Where the gateway's spans go."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for module in (rpc, chat_session, chat_turn):
        monkeypatch.setattr(module, "tracer", provider.get_tracer("test"))
    return exporter


@pytest.fixture
def durations(monkeypatch: pytest.MonkeyPatch) -> Durations:
    """How many request durations were recorded, by error type; '' is none."""
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader]).get_meter("test")
    monkeypatch.setattr(metrics, "_request_duration", meter.create_histogram(names.REQUEST_DURATION.name))

    def read() -> dict[str, int]:
        found: Counter[str] = Counter()
        told = reader.get_metrics_data()
        for resource in told.resource_metrics if told else ():
            for point in resource.scope_metrics[0].metrics[0].data.data_points:
                assert isinstance(point, HistogramDataPoint)
                found[str((point.attributes or {}).get(names.ATTR_ERROR_TYPE, ""))] += point.count
        return dict(found)

    return read


def ids(named: ReadableSpan | Link) -> tuple[str, str]:
    """Trace and span."""
    assert named.context is not None
    return f"{named.context.trace_id:032x}", f"{named.context.span_id:016x}"


async def test_each_turn_has_a_span_and_the_stream_has_none(
    broker: Broker, worker: ScriptedWorker, gateway: RunningGateway, exported: InMemorySpanExporter
) -> None:
    """All in the caller's trace; each turn is linked to what opened the conversation, and the worker's lie below it."""
    talk = Talk(gateway, traceparent=f"00-{TRACE_ID}-{PARENT_ID}-01")
    ready = await talk.setup()
    said = []
    for text in ("one", "two"):
        await talk.say(text)
        work = await next_work(broker, worker, ready)
        said.append((work.generation_id, work.taken.job.trace_context["traceparent"].split("-")[1:3]))
        await answer(work, "fine")
        await talk.event("turn_finished")
    await talk.call.done_writing()
    assert await rest_of(talk.call) == []

    opened, *turns = exported.get_finished_spans()
    assert [span.name for span in (opened, *turns)] == [names.SPAN_SESSION, names.SPAN_TURN, names.SPAN_TURN]
    for number, (turn, (generation_id, carried)) in enumerate(zip(turns, said, strict=True)):
        assert [ids(link) for link in turn.links] == [ids(opened)]
        assert list(ids(turn)) == carried
        attributes = turn.attributes or {}
        assert attributes[names.ATTR_SESSION_ID] == ready.session_id
        assert (attributes[names.ATTR_TURN], attributes[names.ATTR_GENERATION_ID]) == (number, generation_id)
    for span in (opened, *turns):
        assert ids(span)[0] == TRACE_ID
        assert span.parent is not None
        assert f"{span.parent.span_id:016x}" == PARENT_ID


async def test_a_turn_that_fails_is_counted_though_its_stream_goes_on(
    broker: Broker,
    worker: ScriptedWorker,
    gateway: RunningGateway,
    exported: InMemorySpanExporter,
    durations: Durations,
) -> None:
    """Once, under its error, which its span names too; the next turn is counted without."""
    talk = Talk(gateway)
    ready = await talk.setup()
    await talk.say("break")
    await (await next_work(broker, worker, ready)).finish(EndReason.FAILED)
    await talk.event("turn_failed")
    assert durations() == {"GENERATION_FAILED": 1}
    await talk.say("hello")
    await answer(await next_work(broker, worker, ready), "hello")
    await talk.event("turn_finished")
    await talk.call.done_writing()
    assert await rest_of(talk.call) == []

    assert durations() == {"GENERATION_FAILED": 1, "": 1}
    failed, fine = [span for span in exported.get_finished_spans() if span.name == names.SPAN_TURN]
    assert (failed.attributes or {})[names.ATTR_ERROR_TYPE] == "GENERATION_FAILED"
    assert [failed.status.status_code, fine.status.status_code] == [StatusCode.ERROR, StatusCode.UNSET]


async def test_a_turn_whose_client_goes_is_counted(
    broker: Broker, worker: ScriptedWorker, gateway: RunningGateway, durations: Durations
) -> None:
    """As an RPC that streams one generation is."""
    talk = Talk(gateway)
    ready = await talk.setup()
    await talk.say("Count")
    work = await next_work(broker, worker, ready)
    await work.say("1")
    await talk.tokens(1)
    talk.call.cancel()
    await until(lambda: durations() == {"CANCELLED": 1})
    await work.finish()


async def test_a_failed_turn_of_its_own_rpc_is_counted_once(
    broker: Broker,
    worker: ScriptedWorker,
    gateway: RunningGateway,
    exported: InMemorySpanExporter,
    durations: Durations,
) -> None:
    """SendTurn ends with the turn, and both would count."""
    message = chat_pb2.UserMessage(content="break")
    request = chat_pb2.SendTurnRequest(setup=SETUP, user_message=message)
    call = chat_pb2_grpc.ChatServiceStub(gateway.channel).SendTurn(request)
    ready = (await call.read()).ready
    await (await next_work(broker, worker, ready)).finish(EndReason.FAILED)
    assert (await error_of(call)).code() is grpc.StatusCode.INTERNAL
    await until(lambda: exported.get_finished_spans()[-1].name.endswith("/SendTurn"), what="the RPC is over")
    assert durations() == {"GENERATION_FAILED": 1}
