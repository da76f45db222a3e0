"""One unbroken stream, whatever the gateways do: the same cases for threads and for asyncio."""

import asyncio
import itertools
import time
from typing import Any

import grpc
import pytest

from contract.errors import (
    BrokerDown,
    Draining,
    FieldViolation,
    GenerationFailed,
    InvalidRequest,
    NoWorker,
    Overloaded,
    ReaderStalled,
)
from contract.messages import CHAIN_START
from llamaherd import client as herd
from llamaherd.v1 import common_pb2, generation_pb2
from tests.clients.python.both import Ask, Read
from tests.clients.python.scripted_gateway import GENERATION_ID, Cut, scripted, tell
from tests.until import until

CHOICES = {1: ("a word",), 3: ("abc", "de", "fghi")}


def generate(client: Any) -> Any:
    """What most tests ask for."""
    return client.generate("count", temperature=0.0, timeout_s=30)


def assert_whole(read: Read, *choices: str) -> None:
    """Every token once, in order, and the facts of the end."""
    assert read.error is None
    assert read.texts == list(choices)
    assert read.positions == list(range(sum(map(len, choices))))
    assert [d.choice for d in read.deltas if d.finished] == sorted(range(len(choices)), key=lambda n: len(choices[n]))
    assert read.facts.usage == common_pb2.Usage(prompt_tokens=3, output_tokens=len(read.positions))
    assert set(read.facts.finished) == set(range(len(choices)))


@pytest.mark.parametrize("num_choices", [1, 3])
async def test_a_cut_anywhere_is_not_seen(ask: Ask, num_choices: int) -> None:
    """The connection breaks after every possible number of messages, then again right after: the same stream."""
    choices = CHOICES[num_choices]
    for after in range(len(tell(*choices)) + 1):
        async with scripted(*choices, cuts=[Cut(after), Cut(0), Cut(2)]) as gateway:
            assert_whole(await ask([gateway.address], generate), *choices)


async def test_before_accepted_the_same_request_is_made_again(ask: Ask) -> None:
    """A Generate that broke before `accepted` may have reached the service: its request_id finds the generation."""
    async with scripted("text", cuts=[Cut(0), Cut(0)]) as gateway:
        assert_whole(await ask([gateway.address], generate), "text")

    first, *others = gateway.requests
    assert isinstance(first, generation_pb2.GenerateRequest)
    assert first.request_id
    assert others == [first, first]


async def test_afterwards_it_attaches_with_position_and_chain(ask: Ask) -> None:
    """The next position, and the chain that proves what came before it."""
    async with scripted("text", cuts=[Cut(5)]) as gateway:
        assert_whole(await ask([gateway.address], generate), "text")

    chain = tell("text")[4].tokens[0].chain
    assert gateway.requests[1] == generation_pb2.AttachRequest(
        generation_id=GENERATION_ID, from_position=2, chain=chain
    )


async def test_a_break_goes_to_another_gateway_first(ask: Ask) -> None:
    """With two gateways, neither is asked twice in a row."""
    order: list[str] = []
    async with scripted("some text", cuts=[Cut(4), Cut(6)]) as one, scripted("some text", cuts=[Cut(5)]) as two:
        for name, gateway in (("one", one), ("two", two)):
            gateway.requests = _Noted(order, name)
        assert_whole(await ask([one.address, two.address], generate), "some text")

    assert len(order) >= 3
    assert all(before != after for before, after in itertools.pairwise(order))


class _Noted(list[Any]):
    """A list of requests that also notes whose each was."""

    def __init__(self, order: list[str], name: str) -> None:
        super().__init__()
        self._order, self._name = order, name

    def append(self, item: Any) -> None:
        self._order.append(self._name)
        super().append(item)


async def test_a_gateway_that_is_not_there_is_gone_around(ask: Ask) -> None:
    """Addresses where nobody listens cost a moment."""
    async with scripted("text") as gateway:
        assert_whole(await ask(["127.0.0.1:1", gateway.address, "127.0.0.1:2"], generate), "text")


async def test_one_name_may_stand_for_several_gateways(ask: Ask) -> None:
    """As a DNS name does: calls take turns, and go around an address where nobody listens."""
    cuts = [Cut(n) for n in range(1, 8)]
    async with scripted("some text", cuts=cuts) as one, scripted("some text", cuts=cuts) as two:
        name = f"ipv4:{one.address},127.0.0.1:1,{two.address}"
        assert_whole(await ask([name], generate), "some text")

    assert one.requests
    assert two.requests


@pytest.mark.parametrize("error", [Draining(), ReaderStalled(60.0)])
async def test_a_stream_that_a_gateway_lets_go_of_goes_on(ask: Ask, error: Any) -> None:
    """DRAINING in mid-stream is a move, not an error; and so is READER_STALLED for one that reads again."""
    async with (
        scripted("some text", cuts=[Cut(6, error)]) as one,
        scripted("some text", cuts=[Cut(6, error)]) as two,
    ):
        assert_whole(await ask([one.address, two.address], generate), "some text")


@pytest.mark.parametrize("error", [Overloaded(9, 9, 0.3), NoWorker("m", 0.3), BrokerDown(0.3)])
async def test_a_retry_waits_as_long_as_the_service_says(ask: Ask, error: Any) -> None:
    """RetryInfo goes before the client's own 50 ms."""
    async with scripted("text", cuts=[Cut(0, error)]) as gateway:
        begun_s = time.monotonic()
        assert_whole(await ask([gateway.address], generate), "text")
        assert time.monotonic() - begun_s >= 0.3


async def test_patience_ends_with_the_last_error(ask: Ask) -> None:
    """A wait beyond it is not begun: the caller learns at once what is wrong, and when to come back."""
    async with scripted("text", cuts=[Cut(0, Overloaded(9, 9, 30.0))]) as gateway:
        read = await ask([gateway.address], generate, patience_s=5.0)

    assert isinstance(read.error, herd.Overloaded)
    assert read.error.retry_after_s == 30.0
    assert read.error.reason == "OVERLOADED"
    assert len(gateway.requests) == 1


async def test_a_service_may_forbid_retries(ask: Ask) -> None:
    """A negative pushback, as gRPC defines it."""
    async with scripted("text", cuts=[Cut(2, trailers=(("grpc-retry-pushback-ms", "-1"),))]) as gateway:
        read = await ask([gateway.address], generate)

    assert isinstance(read.error, herd.Unavailable)
    assert len(gateway.requests) == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest([FieldViolation("spec.sampling.temperature", "is -1")]), herd.InvalidRequest),
        (GenerationFailed(GENERATION_ID, 2), herd.GenerationFailed),
    ],
)
async def test_what_a_retry_cannot_mend_is_raised_at_once(ask: Ask, error: Any, kind: type[Exception]) -> None:
    """With all that the status says."""
    async with scripted("text", cuts=[Cut(4, error)]) as gateway:
        read = await ask([gateway.address], generate)

    assert type(read.error) is kind
    assert len(gateway.requests) == 1
    if isinstance(read.error, herd.InvalidRequest):
        assert read.error.violations == (herd.FieldViolation("spec.sampling.temperature", "is -1"),)
        assert read.error.code is grpc.StatusCode.INVALID_ARGUMENT
    else:
        assert read.error is not None
        assert read.error.metadata == {"attempt": "2"}


async def test_the_deadline_is_one_for_all_attempts(ask: Ask) -> None:
    """Breaks do not renew it; the generation is then cancelled, since nobody waits for it any more."""
    async with scripted("text", cuts=[Cut(4), Cut(2), Cut(0, stall=True)]) as gateway:
        read = await ask([gateway.address], lambda client: client.generate("count", timeout_s=1.0))

    assert isinstance(read.error, herd.DeadlineExceeded)
    assert read.texts == ["t"]
    assert gateway.cancelled == [GENERATION_ID]
    assert read.facts.generation_id == GENERATION_ID


async def test_a_forked_text_is_data_loss(ask: Ask) -> None:
    """The second gateway tells another generation under the same id: the chain does not fit, nothing of it is given."""
    async with scripted("good text", cuts=[Cut(6)]) as gateway:
        other = tell("evil text")

        async def swap() -> None:
            await until(lambda: not gateway.cuts, what="the first call is cut")
            gateway.messages = other

        swapped = asyncio.create_task(swap())
        read = await ask([gateway.address], generate)
        await swapped

    assert isinstance(read.error, herd.DataLoss)
    assert read.texts == ["goo"]


async def test_leaving_cancels_the_generation(ask: Ask) -> None:
    """`break` is enough."""
    async with scripted("text", cuts=[Cut(5, stall=True)]) as gateway:
        read = await ask([gateway.address], generate, leave_after=2)

    assert read.texts == ["te"]
    assert gateway.cancelled == [GENERATION_ID]


async def test_leaving_what_another_started_leaves_it_running(ask: Ask) -> None:
    """An attached reader is one of several."""
    async with scripted("text", cuts=[Cut(5, stall=True)]) as gateway:
        read = await ask([gateway.address], lambda client: client.attach(GENERATION_ID), leave_after=2)

    assert read.texts == ["te"]
    assert gateway.cancelled == []


async def test_a_reader_goes_on_where_another_stopped(ask: Ask) -> None:
    """Position and chain of one stream open the next."""
    async with scripted("some text", cuts=[Cut(7, GenerationFailed(GENERATION_ID, 1))]) as gateway:
        first = await ask([gateway.address], generate)
        at, chain = first.facts.position, first.facts.chain
        second = await ask([gateway.address], lambda client: client.attach(GENERATION_ID, at, chain))
        forked = await ask([gateway.address], lambda client: client.attach(GENERATION_ID, at, CHAIN_START))

    assert first.texts[0] + second.texts[0] == "some text"
    assert isinstance(forked.error, herd.DataLoss)


async def test_key_and_metadata_go_with_every_call(ask: Ask) -> None:
    """With the attach after a break too."""
    async with scripted("text", cuts=[Cut(4)]) as gateway:
        await ask([gateway.address], generate, api_key="secret", metadata=[("x-tenant", "blue")])

    assert [(m["authorization"], m["x-tenant"]) for m in gateway.metadata] == [("Bearer secret", "blue")] * 2


async def test_the_callers_span_is_the_parent_of_every_attempt(ask: Ask) -> None:
    """W3C traceparent, the same after a break."""
    from opentelemetry.sdk.trace import TracerProvider

    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("caller") as span:
        async with scripted("text", cuts=[Cut(4)]) as gateway:
            await ask([gateway.address], generate)

    trace_id = f"{span.get_span_context().trace_id:032x}"
    assert [m["traceparent"].split("-")[1] for m in gateway.metadata] == [trace_id] * 2


async def test_an_end_without_completed_is_a_break(ask: Ask) -> None:
    """A proxy that ends a stream with OK hides nothing."""
    async with scripted("text") as gateway:
        whole = gateway.messages
        gateway.messages = whole[:5]

        async def mend() -> None:
            await until(lambda: len(gateway.requests) == 1, what="the short stream is asked for")
            gateway.messages = whole

        mended = asyncio.create_task(mend())
        assert_whole(await ask([gateway.address], generate), "text")
        await mended


async def test_a_cancelled_task_cancels_its_generation() -> None:
    """asyncio: the task that reads is cancelled; the client's end waits until the service knows."""
    async with scripted("text", cuts=[Cut(5, stall=True)]) as gateway:
        has_read = asyncio.Event()

        async def read(client: herd.AsyncClient) -> None:
            async for _ in generate(client):
                has_read.set()

        async with herd.AsyncClient(gateway.address) as client:
            task = asyncio.create_task(read(client))
            await has_read.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    assert gateway.cancelled == [GENERATION_ID]


async def test_leaving_before_accepted_finds_the_generation_by_its_request_id() -> None:
    """It may stand already, though its id has not come."""
    async with scripted("text", cuts=[Cut(0, stall=True)]) as gateway, herd.AsyncClient(gateway.address) as client:
        stream = generate(client)
        task = asyncio.ensure_future(anext(aiter(stream)))
        await until(lambda: gateway.requests)
        task.cancel()
        await asyncio.wait([task])
        await client.close()

    assert gateway.submitted == [stream.request_id]
    assert gateway.cancelled == [GENERATION_ID]


async def test_a_closed_client_makes_no_calls() -> None:
    """Cancelled, of the service nothing is heard."""
    client = herd.Client("127.0.0.1:1")
    client.close()
    with pytest.raises(herd.Cancelled):
        client.get(GENERATION_ID)


def test_an_unread_stream_was_never_begun() -> None:
    """Nothing is sent, nothing is cancelled, nothing is warned of."""
    with herd.Client("127.0.0.1:1") as client, generate(client) as stream:
        assert stream.generation_id == ""
