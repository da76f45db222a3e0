"""Whatever a request holds, the answer is a stream or a typed error, never INTERNAL or UNKNOWN."""

import math
from collections.abc import AsyncIterator
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
from llamaherd.v1 import common_pb2, generation_pb2
from tests.redis_server import start_valkey
from tests.service.bundles import PIECES, bundle
from tests.service.conftest import LASTING, is_serving, short_folder
from tests.service.error_details import details_of
from tests.service.gateways import RunningGateway, first_answer, open_stream, prompt, read_rest, running_gateway
from tests.service.scripted_worker import scripted_worker
from tests.until import until

EXPECTED = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}


ATTACH_ERRORS = {grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.ALREADY_EXISTS}
METHODS = {  # by name: whether it streams. Complete, which waits for a worker, reads requests as Generate does.
    "Generate": True,
    "Attach": True,
    "SubmitGeneration": False,
    "GetGeneration": False,
    "CancelGeneration": False,
}


@dataclass(slots=True)
class Fuzzed:
    """A herd that nobody else uses: its worker takes what a test asks it to, so no drain is measured."""

    gateway: RunningGateway
    broker: Broker
    finished_id: str
    tokens: list[common_pb2.Token]
    right: dict[str, bytes]  # a request of each method that is answered well


@pytest.fixture(scope="module")
async def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fuzzed]:
    """With one generation that has ended."""
    server = start_valkey(short_folder(tmp_path_factory))
    broker = Broker.connect(server.url)
    models = {"chat": bundle(temperature=0.6, do_sample=True), "base": bundle(ChatFormatKind.NONE)}
    async with (
        scripted_worker(broker, models) as worker,
        running_gateway(server.url, max_waiting=1_000_000, max_waiting_tokens=2**40, resume_wait_s=0.1) as gateway,
    ):
        await until(lambda: is_serving(gateway), what="the gateway sees the worker")
        call, received = await open_stream(gateway, prompt(request_id="finished"))
        work = await worker.take(received.generation_id)
        await work.say("a", "b")
        await work.say("c")
        await work.say("d", "e", "f")
        await work.finish()
        await read_rest(call, received)
        tokens = [token for message in received.messages for token in message.tokens]
        ask = generation_pb2.GetGenerationRequest(generation_id=received.generation_id).SerializeToString()
        attach = generation_pb2.AttachRequest(generation_id=received.generation_id, from_position=1, chain=5)
        start = prompt(request_id="right").SerializeToString()
        right = {
            **dict.fromkeys(("GetGeneration", "CancelGeneration"), ask),
            **dict.fromkeys(("Generate", "SubmitGeneration"), start),
            "Attach": attach.SerializeToString(),
        }
        yield Fuzzed(gateway, broker, received.generation_id, tokens, right)
    await broker.close()
    server.kill()


def optional(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """Absent half of the time."""
    return st.none() | strategy


uint32 = st.sampled_from([0, 1, 2, 16, 17, 4095, 4096, 4097, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)
numbers = st.sampled_from([0.0, 1.0, 0.5, -1.0, math.nan, math.inf, -math.inf, 100.5]) | st.floats(width=32)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
sampling = st.builds(
    common_pb2.Sampling,
    temperature=optional(numbers),
    top_k=optional(uint32),
    top_p=optional(numbers),
    min_p=optional(st.sampled_from([0.0, 0.0, 0.5, math.nan])),
    typical_p=optional(st.sampled_from([1.0, 0.5, 0.0, math.nan])),
    repetition_penalty=optional(st.sampled_from([1.0, 1.3, 100.0, 0.0])),
    frequency_penalty=optional(st.sampled_from([0.0, -100.0, 100.0, 100.5])),
    presence_penalty=optional(st.sampled_from([0.0, -100.0, 100.0, math.inf])),
    n=optional(st.sampled_from([1, 1, 2, 3, 16, 0, 17])),
    seed=optional(st.integers(0, 2**64 - 1)),
    logit_bias=st.dictionaries(st.integers(0, len(PIECES)) | uint32, st.floats(-101, 101, width=32), max_size=2),
)
stopping = st.builds(
    common_pb2.Stopping,
    max_new_tokens=optional(uint32),
    max_total_tokens=optional(uint32),
    max_time_ms=optional(uint32),
    min_new_tokens=optional(st.sampled_from([0, 1, 2**32 - 1])),
    stop_strings=st.lists(texts, max_size=3),
    stop_token_ids=st.lists(st.integers(0, len(PIECES)) | uint32, max_size=2),
    ignore_eos=optional(st.booleans()),
)
output = st.builds(
    common_pb2.OutputOptions,
    logprobs=optional(st.booleans()),
    top_logprobs=optional(st.sampled_from([0, 1, 20, 21])),
    echo=optional(st.booleans()),
    prompt_logprobs=optional(st.booleans()),
)
messages = st.lists(
    st.builds(common_pb2.ChatMessage, role=st.sampled_from([0, 1, 2, 2, 3, 9]), content=texts), max_size=4
)
inputs: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.fixed_dictionaries({"prompt": texts}),
    st.fixed_dictionaries({"token_ids": st.builds(common_pb2.TokenIds, ids=st.lists(uint32, max_size=4))}),
    st.fixed_dictionaries(
        {"token_ids": st.builds(common_pb2.TokenIds, ids=st.lists(st.integers(0, len(PIECES) - 1), max_size=9))}
    ),
    st.fixed_dictionaries(
        {"chat": st.builds(common_pb2.ChatInput, messages=messages, allow_format_tags=st.booleans())}
    ),
    st.just({}),
)


@st.composite
def requests(draw: st.DrawFn) -> generation_pb2.GenerateRequest:
    """Any request; about a third of them are right."""
    parts = draw(inputs)
    if draw(st.booleans()):
        parts = parts | {"sampling": draw(sampling)}
    if draw(st.booleans()):
        parts = parts | {"priority": draw(st.sampled_from([0, 2, 3, 3, -1, 99]))}
    if draw(st.booleans()):
        parts = parts | {"stopping": draw(stopping)}
    if draw(st.booleans()):
        parts = parts | {"output": draw(output)}
    spec = common_pb2.GenerationSpec(
        model=draw(st.sampled_from(["chat", "chat", "base", "", "nobody"]) | texts),
        resume_window_ms=draw(st.none() | st.sampled_from([0, 600_000, 600_001])),
        **parts,
    )
    return generation_pb2.GenerateRequest(spec=spec, request_id=draw(st.none() | st.sampled_from(["", "r" * 129])))


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(request=requests())
async def test_any_request_is_taken_or_refused_by_name(fuzzed: Fuzzed, request: generation_pb2.GenerateRequest) -> None:
    """Accepted with settings within their bounds, or an error that says what is wrong."""
    answer = await first_answer(fuzzed.gateway.stub.Generate(request, timeout=20))

    if isinstance(answer, grpc.aio.AioRpcError):
        assert answer.code() in EXPECTED, answer
        info, bad, _ = details_of(answer)
        assert info.reason in ("INVALID_REQUEST", "UNKNOWN_MODEL")
        assert (answer.code() is grpc.StatusCode.INVALID_ARGUMENT) == bool(bad.field_violations)
    else:
        used = answer.accepted.settings
        assert 0 <= used.sampling.temperature <= 100
        assert 0 < used.sampling.top_p <= 1
        assert 0 < used.sampling.typical_p <= 1
        assert 0 < used.sampling.repetition_penalty <= 100
        assert 1 <= used.sampling.n <= 16
        assert all(id_ < len(PIECES) for id_ in (*used.sampling.logit_bias, *used.stopping.stop_token_ids))
        assert used.stopping.min_new_tokens <= used.stopping.max_new_tokens
        assert 1 <= used.stopping.max_new_tokens <= used.stopping.max_total_tokens <= 4096


@settings(max_examples=400, deadline=None, derandomize=True)
@given(name=st.sampled_from(sorted(METHODS)), body=st.binary(max_size=200))
async def test_any_bytes_get_a_typed_answer(fuzzed: Fuzzed, name: str, body: bytes) -> None:
    """Bytes that are no request at all, too, by every method."""
    answer = await answer_to(fuzzed.gateway, name, body)
    if isinstance(answer, grpc.aio.AioRpcError):
        assert answer.code() in EXPECTED, answer
        assert details_of(answer)[0].domain == "llamaherd.dev"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(flips=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=4), data=st.data())
async def test_damaged_requests_get_a_typed_answer(
    fuzzed: Fuzzed, flips: list[tuple[int, int]], data: st.DataObject
) -> None:
    """A right request of each method with some bytes overwritten: mostly still a message, seldom the one meant."""
    name = data.draw(st.sampled_from(sorted(METHODS)))
    body = bytearray(fuzzed.right[name])
    for at, byte in flips:
        body[at % len(body)] = byte
    answer = await answer_to(fuzzed.gateway, name, bytes(body))
    if isinstance(answer, grpc.aio.AioRpcError):
        assert answer.code() in EXPECTED | ATTACH_ERRORS, answer
        assert details_of(answer)[0].domain == "llamaherd.dev"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    position=st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 2**31, 2**32 - 1]),
    chain=st.none() | st.sampled_from(range(-1, 7)) | st.integers(0, 2**32 - 1),
)
async def test_any_resume_point_gets_the_rest_or_its_error(fuzzed: Fuzzed, position: int, chain: int | None) -> None:
    """Of a finished generation: what a model of it says. A chain of -1 to 6 stands for the right one of that place."""
    chains = [0, *(token.chain for token in fuzzed.tokens)]
    given = chain if chain is None or chain > 6 else chains[chain]
    request = generation_pb2.AttachRequest(generation_id=fuzzed.finished_id, from_position=position, chain=given)
    call, tokens = fuzzed.gateway.stub.Attach(request, timeout=20), []
    error: grpc.StatusCode | None = None
    try:
        while (message := await call.read()) is not grpc.aio.EOF:
            tokens += message.tokens
    except grpc.aio.AioRpcError as caught:
        error = caught.code()

    is_beyond = position > len(fuzzed.tokens)
    if is_beyond or given not in (None, chains[min(position, len(fuzzed.tokens))]):
        assert error is (grpc.StatusCode.OUT_OF_RANGE if given is None else grpc.StatusCode.DATA_LOSS)
        assert tokens == []
    else:
        assert error is None
        assert tokens == fuzzed.tokens[position:]


async def test_nothing_is_left_behind(fuzzed: Fuzzed) -> None:
    """After all of the above: no open stream, no reader in any record that goes on, no key without a lifetime."""
    channelz = channelz_pb2_grpc.ChannelzStub(fuzzed.gateway.channel)

    async def is_idle() -> bool:
        servers = await channelz.GetServers(channelz_pb2.GetServersRequest())
        calls = [server.data for server in servers.server]
        # This very call is one of those that have begun; other gateways of this process are idle by now.
        num_open: int = sum(each.calls_started - each.calls_succeeded - each.calls_failed for each in calls)
        return num_open <= 1

    async def is_unread() -> bool:
        raw = fuzzed.broker._client
        records = [key async for key in raw.scan_iter(match=f"{keys.TAG}:gen:*", count=1000)]
        async with raw.pipeline(transaction=False) as pipe:
            for record in records:
                pipe.hmget(record, "state", "readers", "pollers")
            found = await pipe.execute()
        return not any(readers or pollers for state, readers, pollers in found if state != b"finished")

    await until(is_idle, what="every call has ended")
    await until(is_unread, what="the gateway has left what it read")
    lasting = [key async for key in fuzzed.broker._client.scan_iter() if await fuzzed.broker._client.pttl(key) == -1]
    assert [key for key in lasting if not key.decode().startswith(LASTING)] == []


async def answer_to(gateway: RunningGateway, name: str, body: bytes) -> Any:
    """What a method answers to these bytes: its first message, or the error."""
    path = f"/llamaherd.v1.GenerationService/{name}"
    stream: Any = gateway.channel.unary_stream(path)
    unary: Any = gateway.channel.unary_unary(path)
    if METHODS[name]:
        return await first_answer(stream(body, timeout=20))
    try:
        return await unary(body, timeout=20)
    except grpc.aio.AioRpcError as error:
        return error
