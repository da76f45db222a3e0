"""Any knobs at all, within their bounds and just outside, run to the end: a right answer or a typed refusal."""

from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamaherd.v1 import common_pb2, generation_pb2
from tests.knobs.model import SHAPE
from tests.knobs.rig import MODEL, Herd
from tests.service.error_details import details_of

ids = st.integers(0, SHAPE.vocab_size - 1)


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Absent half of the time."""
    return st.none() | strategy


def within(low: float, high: float, *, over_low: bool = False) -> st.SearchStrategy[Any]:
    """Any float32 of the range, its ends often; absent half of the time."""
    inside = st.floats(low, high, width=32, exclude_min=over_low)
    return optional(inside | st.sampled_from([high, 1e-38 if over_low else low]))


sampling = st.builds(
    common_pb2.Sampling,
    temperature=within(0, 100),
    top_k=optional(st.integers(0, SHAPE.vocab_size)),
    top_p=within(0, 1, over_low=True),
    min_p=within(0, 1),
    typical_p=within(0, 1, over_low=True),
    repetition_penalty=within(0, 100, over_low=True),
    frequency_penalty=within(-100, 100),
    presence_penalty=within(-100, 100),
    logit_bias=st.dictionaries(ids, st.floats(-100, 100, width=32), max_size=6),
    seed=optional(st.integers(0, 2**64 - 1)),
    n=optional(st.integers(1, 4)),
)
stopping = st.builds(
    common_pb2.Stopping,
    max_new_tokens=st.integers(2, 6),
    max_total_tokens=optional(st.integers(6, 12)),
    min_new_tokens=optional(st.integers(0, 3)),
    stop_strings=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=2), max_size=3),
    stop_token_ids=st.lists(ids, max_size=64),
    ignore_eos=optional(st.booleans()),
)
output = st.builds(
    common_pb2.OutputOptions,
    logprobs=optional(st.booleans()),
    top_logprobs=optional(st.integers(0, 20)),
    echo=st.booleans(),
    prompt_logprobs=st.none() | st.none() | st.booleans(),
)
specs = st.builds(
    common_pb2.GenerationSpec,
    model=st.just(MODEL),
    token_ids=st.builds(common_pb2.TokenIds, ids=st.lists(ids, min_size=1, max_size=6)),
    sampling=sampling,
    stopping=stopping,
    output=output,
)


@settings(
    max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], deadline=None
)
@given(spec=specs)
@pytest.mark.usefixtures("herd")
async def test_any_knobs_end_right(herd: Herd, spec: common_pb2.GenerationSpec) -> None:
    """As many choices as were asked for, none longer than it may be, each ended by something it was told to end by."""
    answer = await answer_of(herd, spec)
    if isinstance(answer, grpc.aio.AioRpcError):
        assert answer.code() is grpc.StatusCode.INVALID_ARGUMENT, answer
        _, told, _ = details_of(answer)
        allowed = {"spec.stopping.min_new_tokens", "spec.stopping.max_total_tokens", "spec.output.prompt_logprobs"}
        assert {violation.field for violation in told.field_violations} <= allowed, answer
        return
    used = answer.settings
    num_echoed = len(spec.token_ids.ids) if used.output.echo else 0
    assert len(answer.choices) == used.sampling.n
    for choice in answer.choices:
        num_new = len(choice.tokens) - num_echoed
        assert 1 <= num_new <= used.stopping.max_new_tokens
        assert all(token.HasField("logprob") == used.output.logprobs for token in choice.tokens[num_echoed:])
        assert all(len(token.top_logprobs) == used.output.top_logprobs for token in choice.tokens[num_echoed:])
        assert_ended_rightly(choice, num_new, used.stopping)


async def answer_of(herd: Herd, spec: common_pb2.GenerationSpec) -> Any:
    """The whole answer, or the error in its place."""
    try:
        return await herd.gateway.stub.Complete(generation_pb2.CompleteRequest(spec=spec), timeout=60)
    except grpc.aio.AioRpcError as error:
        return error


def assert_ended_rightly(choice: generation_pb2.CompletedChoice, num_new: int, used: common_pb2.Stopping) -> None:
    """The reason is true."""
    match common_pb2.FinishReason.Name(choice.finished.reason).removeprefix("FINISH_REASON_"):
        case "LENGTH":
            assert num_new == used.max_new_tokens
        case "STOP_TOKEN":
            assert choice.tokens[-1].id in used.stop_token_ids
            assert num_new > used.min_new_tokens
        case "EOS":
            assert not used.ignore_eos
            assert num_new > used.min_new_tokens
        case "STOP_STRING":
            assert choice.finished.stop_string in used.stop_strings
        case other:
            raise AssertionError(other)
