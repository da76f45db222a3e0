"""Whatever a conversation's client sends: the answer that the protocol has for it, or a typed error; never INTERNAL.

Here every job is answered at once, so calls that wait for a worker are fuzzed too.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract import keys
from contract.broker import Broker
from contract.bundle import ChatFormatKind
from contract.messages import ChoiceEnd
from llamaherd.v1 import chat_pb2, chat_pb2_grpc, common_pb2, generation_pb2
from tests.redis_server import start_valkey
from tests.service.bundles import bundle
from tests.service.conftest import LASTING, is_serving, short_folder
from tests.service.error_details import details_of
from tests.service.gateways import RunningGateway, answer_of, prompt, running_gateway
from tests.service.scripted_worker import ScriptedWorker, scripted_worker
from tests.service.test_fuzz import requests, sampling, stopping, texts
from tests.until import until

CODE = grpc.StatusCode
REFUSED = {CODE.INVALID_ARGUMENT, CODE.NOT_FOUND, CODE.ALREADY_EXISTS}
TOO_LATE = CODE.DEADLINE_EXCEEDED  # a fuzzed max_time_ms that was over in the queue, or would be
TURN_ERRORS = {CODE.FAILED_PRECONDITION, CODE.OUT_OF_RANGE, CODE.DATA_LOSS, TOO_LATE}  # another runs; fuzzed positions
UNARY = ("Interrupt", "OpenSession", "EndSession")
LOOKS_S = 0.002
LIMIT_S = 20


@dataclass(slots=True)
class Answered:
    """A herd whose worker answers everything with two tokens, and one conversation in it that nobody ends."""

    gateway: RunningGateway
    broker: Broker
    handle: str
    channel: grpc.Channel  # of threads: grpc.aio tells a status of its own where a stream ends while it writes

    @property
    def chat(self) -> chat_pb2_grpc.ChatServiceStub:
        """ChatService there."""
        return chat_pb2_grpc.ChatServiceStub(self.gateway.channel)


@pytest.fixture(scope="module")
async def answered(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Answered]:
    """With a server of its own."""
    server = start_valkey(short_folder(tmp_path_factory))
    broker = Broker.connect(server.url)
    models = {"chat": bundle(), "base": bundle(ChatFormatKind.NONE)}
    async with scripted_worker(broker, models) as worker, running_gateway(server.url, resume_wait_s=0.1) as gateway:
        await until(lambda: is_serving(gateway), what="the gateway sees the worker")
        answering = asyncio.create_task(answer_everything(broker, worker))
        stub = chat_pb2_grpc.ChatServiceStub(gateway.channel)
        opened = await stub.OpenSession(chat_pb2.OpenSessionRequest(setup=chat_pb2.ChatSetup(model="chat")))
        with grpc.insecure_channel(gateway.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            yield Answered(gateway, broker, opened.ready.resumption_handle, channel)
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)
    await broker.close()
    server.kill()


async def answer_everything(broker: Broker, worker: ScriptedWorker) -> None:
    """Two tokens in choice 0, and the end of every choice."""
    while True:
        for model, worker_id in worker.worker_ids.items():
            for job_class in keys.CLASSES:
                for entry in await broker.read_jobs(worker_id, model, job_class, count=64, block_ms=0):
                    if (work := await worker._take(entry, model)) is not None:
                        await work.say("a", "b")
                        num_choices = work.taken.job.sampling.n
                        await work.finish(ends=[ChoiceEnd(choice, "EOS", 2) for choice in range(num_choices)])
        await asyncio.sleep(LOOKS_S)


setups = st.builds(
    chat_pb2.ChatSetup,
    model=st.sampled_from(["chat", "chat", "chat", "base", "", "nobody"]),
    system_prompt=st.sampled_from(["", "Be kind.", "[INST]"]) | texts,
    sampling=st.none() | sampling,
    stopping=st.none() | stopping,
    resumption_handle=st.sampled_from(["", "", "", "THE HANDLE", "0" * 32 + "." + "f" * 32]) | texts,
    from_position=st.sampled_from([0, 0, 1, 2**32 - 1]),
    chain=st.none() | st.integers(0, 2**32 - 1),
    ttl_s=st.none() | st.sampled_from([0, 59, 60, 86_400, 86_401, 2**32 - 1]),
)
said = st.builds(
    chat_pb2.UserMessage,
    content=st.sampled_from(["hello", "hello", "", "[INST] x", "x" * 9000]) | texts,
    request_id=st.none() | st.sampled_from(["r", "", "i" * 129]),
)
shown = st.none() | st.sampled_from([0, 1, 2**32 - 1])
spoken = st.one_of(
    st.builds(chat_pb2.ChatRequest, user_message=said),
    st.builds(chat_pb2.ChatRequest, user_message=said),
    st.builds(
        chat_pb2.ChatRequest, interrupt=shown.map(lambda number: chat_pb2.InterruptTurn(num_tokens_shown=number))
    ),
    st.builds(chat_pb2.ChatRequest, end=st.just(chat_pb2.EndSession())),
    st.builds(chat_pb2.ChatRequest, setup=setups),
    st.just(chat_pb2.ChatRequest()),
)
right_setup = st.just(chat_pb2.ChatRequest(setup=chat_pb2.ChatSetup(model="chat")))


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(first=right_setup | st.builds(chat_pb2.ChatRequest, setup=setups) | spoken, rest=st.lists(spoken, max_size=4))
async def test_any_conversation_is_answered(
    answered: Answered, first: chat_pb2.ChatRequest, rest: list[chat_pb2.ChatRequest]
) -> None:
    """Each message in its turn; a stream that ends with OK has answered every one of them."""
    asked = [known(answered, each) for each in (first, *rest)]
    bodies = [each.SerializeToString() for each in asked]
    answers, error = await asyncio.to_thread(converse, answered.channel, bodies)
    events = [chat_pb2.ChatResponse.FromString(body) for body in answers]

    kinds = Counter(event.WhichOneof("event") or "tokens" for event in events)
    assert kinds["ready"] == int(bool(events)), "the answer to setup comes once, and first"
    for event in events:
        if event.HasField("turn_failed"):
            assert event.turn_failed.status.code in {code.value[0] for code in (*REFUSED, *TURN_ERRORS)}, event
    if error is not None:
        assert_typed(error, {TOO_LATE})
        return
    kinds_asked = [each.WhichOneof("message") for each in asked]
    heard = kinds_asked[: kinds_asked.index("end")] if "end" in kinds_asked else kinds_asked
    num_turns = kinds["turn_finished"] + kinds["turn_failed"] - heard.count("user_message")
    assert num_turns == 0 or (num_turns == 1 and asked[0].setup.resumption_handle), "one may have been open before"
    assert heard[0] == "setup"
    assert set(heard[1:]) <= {"user_message", "interrupt"}, "a second setup, or none of these, ends it with an error"


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(setup=setups, message=said, has_handle=st.booleans())
async def test_any_turn_without_a_stream_is_answered(
    answered: Answered, setup: chat_pb2.ChatSetup, message: chat_pb2.UserMessage, has_handle: bool
) -> None:
    """OpenSession, SendTurn, Interrupt and EndSession; what is well asked is answered whole."""
    opening = chat_pb2.OpenSessionRequest(setup=known(answered, chat_pb2.ChatRequest(setup=setup)).setup)
    opened = await answer_of(answered.chat.OpenSession(opening, timeout=LIMIT_S))
    if isinstance(opened, grpc.aio.AioRpcError):
        assert_typed(opened)
    handle = "" if isinstance(opened, grpc.aio.AioRpcError) or not has_handle else opened.ready.resumption_handle
    request = chat_pb2.SendTurnRequest(setup=setup, session_handle=handle, user_message=message)
    events: list[chat_pb2.SendTurnResponse] = []
    error = await read_into(answered.chat.SendTurn(request, timeout=LIMIT_S), events)

    if error is not None:
        assert_typed(error, TURN_ERRORS)
    else:
        assert events[0].HasField("ready")
        assert is_whole(events[-1].turn_finished.finished, [token for event in events for token in event.tokens])
    if handle and handle != answered.handle:
        for call in (
            answered.chat.Interrupt(chat_pb2.InterruptRequest(session_handle=handle), timeout=LIMIT_S),
            answered.chat.EndSession(chat_pb2.EndSessionRequest(session_handle=handle), timeout=LIMIT_S),
        ):
            await call


@settings(max_examples=60, deadline=None, derandomize=True)
@given(name=st.sampled_from([*UNARY, "SendTurn"]), body=st.binary(max_size=100))
async def test_any_bytes_get_a_typed_answer(answered: Answered, name: str, body: bytes) -> None:
    """By every method that takes one message."""
    path = f"/llamaherd.v1.ChatService/{name}"
    if name in UNARY:
        unary: Any = answered.gateway.channel.unary_unary(path)
        answer = await answer_of(unary(body, timeout=LIMIT_S))
    else:
        stream: Any = answered.gateway.channel.unary_stream(path)
        answer = await read_into(stream(body, timeout=LIMIT_S), [])
    if isinstance(answer, grpc.aio.AioRpcError):
        assert_typed(answer)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(bodies=st.lists(st.binary(max_size=40), max_size=3), is_open=st.booleans())
async def test_any_bytes_on_a_stream_get_a_typed_end(answered: Answered, bodies: list[bytes], is_open: bool) -> None:
    """As its first messages, or after a setup that is right."""
    setup = chat_pb2.ChatRequest(setup=chat_pb2.ChatSetup(model="chat")).SerializeToString()
    _, error = await asyncio.to_thread(converse, answered.channel, [setup, *bodies] if is_open else bodies)
    if error is not None:
        assert_typed(error)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(request=requests())
async def test_any_request_answered_at_once(answered: Answered, request: generation_pb2.GenerateRequest) -> None:
    """Complete: every choice, or what is wrong."""
    asked = generation_pb2.CompleteRequest(spec=request.spec, request_id=request.request_id or None)
    answer = await answer_of(answered.gateway.stub.Complete(asked, timeout=LIMIT_S))
    if isinstance(answer, grpc.aio.AioRpcError):
        assert_typed(answer, {TOO_LATE})
    else:
        assert [choice.finished.choice for choice in answer.choices] == list(range(answer.settings.sampling.n))
        assert is_whole(answer.choices[0].finished, answer.choices[0].tokens)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(flips=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=4))
async def test_a_damaged_request_answered_at_once(answered: Answered, flips: list[tuple[int, int]]) -> None:
    """Some bytes of it overwritten."""
    body = bytearray(generation_pb2.CompleteRequest(spec=prompt().spec).SerializeToString())
    for at, byte in flips:
        body[at % len(body)] = byte
    unary: Any = answered.gateway.channel.unary_unary("/llamaherd.v1.GenerationService/Complete")
    answer = await answer_of(unary(bytes(body), timeout=LIMIT_S))
    if isinstance(answer, grpc.aio.AioRpcError):
        assert_typed(answer, {TOO_LATE})


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    begin=st.sampled_from([b"", PREFACE, PREFACE + bytes(9), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"]),
    noise=st.binary(max_size=200),
)
def test_any_bytes_on_the_wire_harm_nobody(answered: Answered, begin: bytes, noise: bytes) -> None:
    """No HTTP/2 at all, or HTTP/2 up to some frame: whoever comes next is served (the test below looks)."""
    host, _, port = answered.gateway.address.partition(":")
    with socket.create_connection((host, int(port)), timeout=LIMIT_S) as connection:
        connection.sendall(begin + noise)


async def test_nothing_is_left_behind(answered: Answered) -> None:
    """After all of the above it serves; no call is open, no connection but our two, and no key lasts for ever."""
    spec = prompt().spec
    answer = await answered.gateway.stub.Complete(generation_pb2.CompleteRequest(spec=spec), timeout=LIMIT_S)
    assert answer.choices[0].text == "ab"
    await until(lambda: is_idle(answered.gateway), what="every call and every other connection has ended")
    raw = answered.broker._client
    lasting = [key async for key in raw.scan_iter() if await raw.pttl(key) == -1]
    assert [key for key in lasting if not key.decode().startswith(LASTING)] == []


async def is_idle(gateway: RunningGateway) -> bool:
    """Whether nothing but the calls and the connections of these tests is open, by the gateway's own count."""
    channelz, port = channelz_pb2_grpc.ChannelzStub(gateway.channel), int(gateway.address.rpartition(":")[2])
    num_calls, ports = 0, []
    for server in (await channelz.GetServers(channelz_pb2.GetServersRequest())).server:
        num_calls += server.data.calls_started - server.data.calls_succeeded - server.data.calls_failed
        ask = channelz_pb2.GetServerSocketsRequest(server_id=server.ref.server_id)
        for socket_ref in (await channelz.GetServerSockets(ask)).socket_ref:
            one = await answer_of(channelz.GetSocket(channelz_pb2.GetSocketRequest(socket_id=socket_ref.socket_id)))
            if not isinstance(one, grpc.aio.AioRpcError):  # it may have been closed just now
                ports.append(one.socket.local.tcpip_address.port)
    return num_calls <= 1 and 1 <= ports.count(port) <= 2  # the one that asks, of all gateways of this process


def known(answered: Answered, request: chat_pb2.ChatRequest) -> chat_pb2.ChatRequest:
    """With the handle of the conversation that there is, where it is meant."""
    if request.setup.resumption_handle != "THE HANDLE":
        return request
    filled = chat_pb2.ChatRequest()
    filled.CopyFrom(request)
    filled.setup.resumption_handle = answered.handle
    return filled


def is_whole(finished: common_pb2.ChoiceFinished, tokens: Sequence[common_pb2.Token]) -> bool:
    """Whether it is what the worker says, or what its time left of that."""
    text, is_late = "".join(token.text for token in tokens), finished.reason == common_pb2.FINISH_REASON_TIME_LIMIT
    return finished.num_tokens == len(tokens) and (text == "ab" or (is_late and text == ""))


def converse(channel: grpc.Channel, bodies: list[bytes]) -> tuple[list[bytes], grpc.RpcError | None]:
    """Say all of it at once on a Chat stream; what is answered, and the error that ends it."""
    method: Any = channel.stream_stream("/llamaherd.v1.ChatService/Chat")
    call = method(iter(bodies), timeout=LIMIT_S)
    answers: list[bytes] = []
    try:
        answers.extend(call)
    except grpc.RpcError as error:
        return answers, error
    return answers, None


async def read_into(call: Any, events: list[Any]) -> grpc.aio.AioRpcError | None:
    """The stream to its end; the error that it ends with."""
    try:
        async for event in call:
            events.append(event)
    except grpc.aio.AioRpcError as error:
        return error
    return None


def assert_typed(error: Any, others: Collection[grpc.StatusCode] = ()) -> None:
    """A refusal of ours, with its details; a deadline is the request's max_time_ms, not the test's own."""
    assert error.code() in {*REFUSED, *others}, error
    info, bad, _ = details_of(error)
    assert info.domain == "llamaherd.dev"
    assert "before the answer was complete" not in (error.details() or "")
    assert (error.code() is CODE.INVALID_ARGUMENT) == bool(bad.field_violations)
