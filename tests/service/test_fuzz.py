"""Whatever a request holds, the answer is a stream or a typed error, never INTERNAL or UNKNOWN."""

import math
from typing import Any

import grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamaherd.v1 import common_pb2, generation_pb2
from tests.service.bundles import PIECES
from tests.service.gateways import RunningGateway
from tests.service.test_status import details_of

EXPECTED = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}


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
async def test_any_request_is_taken_or_refused_by_name(
    gateway: RunningGateway, request: generation_pb2.GenerateRequest
) -> None:
    """Accepted with settings within their bounds, or an error that says what is wrong."""
    answer = await first_answer(gateway.stub.Generate(request, timeout=20))

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


@settings(max_examples=200, deadline=None, derandomize=True)
@given(body=st.binary(max_size=200))
async def test_any_bytes_get_a_typed_answer(gateway: RunningGateway, body: bytes) -> None:
    """Bytes that are no request at all, too."""
    method: Any = gateway.channel.unary_stream("/llamaherd.v1.GenerationService/Generate")
    answer = await first_answer(method(body, timeout=20))

    if isinstance(answer, grpc.aio.AioRpcError):
        assert answer.code() in EXPECTED, answer
        assert details_of(answer)[0].domain == "llamaherd.dev"


async def first_answer(call: Any) -> Any:
    """The stream's first message, then it is cancelled; or the error it ends with."""
    try:
        message = await call.read()
    except grpc.aio.AioRpcError as error:
        return error
    call.cancel()
    return message
