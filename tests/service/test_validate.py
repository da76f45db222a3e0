"""Every bound of the API: a request beyond it is refused with the field's path, and all fields at once."""

import math
from typing import Any

import grpc
import pytest

from llamaherd.v1 import common_pb2, generation_pb2
from service import prompts
from service.knobs import MAX_STOP_STRING_BYTES
from service.prompts import MAX_REQUEST_BYTES
from service.tokenizer import PromptTokenizer
from tests.service.bundles import CONTEXT, PIECES
from tests.service.error_details import details_of
from tests.service.gateways import RunningGateway, error_of, open_stream, prompt

Spec = common_pb2.GenerationSpec
VOCABULARY = len(PIECES)


def spec(**fields: object) -> Spec:
    """A right spec with these fields."""
    return Spec(**({"model": "chat", "prompt": "hi"} | fields))  # type: ignore[arg-type]


def sampling(**fields: object) -> Spec:
    """A right spec with this sampling."""
    return spec(sampling=common_pb2.Sampling(**fields))  # type: ignore[arg-type]


def stopping(**fields: object) -> Spec:
    """A right spec with this stopping."""
    return spec(stopping=common_pb2.Stopping(**fields))  # type: ignore[arg-type]


def output(**fields: object) -> Spec:
    """A right spec with these output options."""
    return spec(output=common_pb2.OutputOptions(**fields))  # type: ignore[arg-type]


def much(n: int, top_logprobs: int) -> Spec:
    """A right spec with so many choices of 4,000 tokens."""
    return spec(
        sampling=common_pb2.Sampling(n=n),
        stopping=common_pb2.Stopping(max_new_tokens=4000),
        output=common_pb2.OutputOptions(top_logprobs=top_logprobs),
    )


def chat(*messages: tuple[common_pb2.Role, str], model: str = "chat", allow: bool = False) -> Spec:
    """A conversation."""
    turns = [common_pb2.ChatMessage(role=role, content=content) for role, content in messages]
    return Spec(model=model, chat=common_pb2.ChatInput(messages=turns, allow_format_tags=allow))


def ids(*values: int) -> Spec:
    """A prompt of ids."""
    return Spec(model="chat", token_ids=common_pb2.TokenIds(ids=values))


SYSTEM, USER, ASSISTANT = common_pb2.ROLE_SYSTEM, common_pb2.ROLE_USER, common_pb2.ROLE_ASSISTANT
REFUSED: list[tuple[Spec, str, str]] = [
    (sampling(temperature=math.nan), "spec.sampling.temperature", "is nan; the range is 0 to 100"),
    (sampling(temperature=math.inf), "spec.sampling.temperature", "is inf"),
    (sampling(temperature=-0.1), "spec.sampling.temperature", "is -0.1"),
    (sampling(temperature=100.1), "spec.sampling.temperature", "0 to 100"),
    (sampling(top_k=VOCABULARY + 1), "spec.sampling.top_k", f"0 to {VOCABULARY}"),
    (sampling(top_p=0), "spec.sampling.top_p", "over 0, at most 1"),
    (sampling(top_p=1.01), "spec.sampling.top_p", "over 0, at most 1"),
    (sampling(top_p=math.nan), "spec.sampling.top_p", "is nan"),
    (sampling(min_p=1.5), "spec.sampling.min_p", "0 to 1"),
    (sampling(typical_p=0), "spec.sampling.typical_p", "over 0"),
    (sampling(repetition_penalty=0), "spec.sampling.repetition_penalty", "over 0"),
    (sampling(frequency_penalty=-101), "spec.sampling.frequency_penalty", "-100 to 100"),
    (sampling(presence_penalty=math.nan), "spec.sampling.presence_penalty", "is nan"),
    (sampling(frequency_penalty=math.inf), "spec.sampling.frequency_penalty", "-100 to 100"),
    (sampling(presence_penalty=100.5), "spec.sampling.presence_penalty", "-100 to 100"),
    (sampling(repetition_penalty=100.5), "spec.sampling.repetition_penalty", "at most 100"),
    (sampling(typical_p=1.5), "spec.sampling.typical_p", "over 0, at most 1"),
    (sampling(min_p=-0.5), "spec.sampling.min_p", "0 to 1"),
    (sampling(n=0), "spec.sampling.n", "1 to 16"),
    (sampling(n=17), "spec.sampling.n", "1 to 16"),
    (sampling(logit_bias={5: math.nan}), "spec.sampling.logit_bias[5]", "is nan"),
    (sampling(logit_bias={5: 100.5}), "spec.sampling.logit_bias[5]", "-100 to 100"),
    (sampling(logit_bias={VOCABULARY: 1.0}), f"spec.sampling.logit_bias[{VOCABULARY}]", "is no id"),
    (sampling(logit_bias=dict.fromkeys(range(1025), 1.0)), "spec.sampling.logit_bias", "at most 1024"),
    (stopping(max_new_tokens=0), "spec.stopping.max_new_tokens", "1 to 4096"),
    (stopping(max_new_tokens=CONTEXT + 1), "spec.stopping.max_new_tokens", "1 to 4096"),
    (
        stopping(max_new_tokens=CONTEXT - 3),
        "spec.stopping.max_new_tokens",
        "prompt has 4 tokens and the context 4096",
    ),
    (stopping(max_total_tokens=0), "spec.stopping.max_total_tokens", "1 to 4096"),
    (stopping(max_total_tokens=CONTEXT + 1), "spec.stopping.max_total_tokens", "1 to 4096"),
    (stopping(max_total_tokens=4), "spec.stopping.max_total_tokens", "the prompt alone has 4 tokens"),
    (stopping(max_time_ms=0), "spec.stopping.max_time_ms", "at least 1"),
    (stopping(stop_strings=["a"] * 17), "spec.stopping.stop_strings", "has 17; at most 16"),
    (stopping(stop_strings=["a", ""]), "spec.stopping.stop_strings[1]", "is empty"),
    (stopping(stop_strings=["é" * 129]), "spec.stopping.stop_strings[0]", "has 258 bytes; at most 256"),
    (stopping(stop_token_ids=[3] * 65), "spec.stopping.stop_token_ids", "at most 64"),
    (stopping(stop_token_ids=[VOCABULARY]), "spec.stopping.stop_token_ids", f"has {VOCABULARY}"),
    (stopping(min_new_tokens=8, max_new_tokens=7), "spec.stopping.min_new_tokens", "max_new_tokens comes to 7"),
    (stopping(min_new_tokens=1025), "spec.stopping.min_new_tokens", "max_new_tokens comes to 1024"),
    (
        stopping(min_new_tokens=7, max_total_tokens=10),
        "spec.stopping.min_new_tokens",
        "comes to 6 after 4 of the prompt",
    ),
    (output(top_logprobs=21), "spec.output.top_logprobs", "0 to 20"),
    (output(prompt_logprobs=True), "spec.output.prompt_logprobs", "without echo"),
    (much(n=16, top_logprobs=20), "spec.sampling.n", "16 choices of 4000 tokens, 20 alternatives each, may take"),
    (spec(priority=77), "spec.priority", "is 77"),
    (spec(resume_window_ms=600_001), "spec.resume_window_ms", "at most 600000"),
    (spec(model="m" * 129), "spec.model", "has 129 characters"),
    (spec(model=""), "spec.model", "is required, as several models are served"),
    (Spec(model="chat"), "spec.input", "is missing"),
    (spec(prompt=""), "spec.prompt", "is empty; token_ids with the model's BOS alone"),
    (spec(prompt="é" * 3000), "spec.prompt", "prompt has 6002 tokens; this model accepts 4095"),
    (spec(prompt="x" * 5010), "spec.prompt", "prompt has at least 5012 tokens; this model accepts 4095"),
    (spec(prompt="x" * (CONTEXT - 2)), "spec.prompt", "prompt has at least 4096 tokens; this model accepts 4095"),
    (spec(prompt="x" * MAX_REQUEST_BYTES), "spec", f"at most {MAX_REQUEST_BYTES}"),
    (ids(), "spec.token_ids.ids", "is empty"),
    (ids(1, 2, VOCABULARY), "spec.token_ids.ids[2]", f"is {VOCABULARY}; ids are 0 to {VOCABULARY - 1}"),
    (ids(*[3] * CONTEXT), "spec.token_ids", "prompt has 4096 tokens"),
    (ids(*[3] * 20_000, VOCABULARY), "spec.token_ids", "prompt has 20001 tokens; this model accepts 4095"),
    (chat(), "spec.chat.messages", "has 0 messages; 1 to 1024"),
    (chat(*[(USER, "x")] * 1025), "spec.chat.messages", "has 1025 messages"),
    (chat((common_pb2.ROLE_UNSPECIFIED, "x")), "spec.chat.messages[0].role", "is 0"),
    (chat((USER, "x"), (USER, "y")), "spec.chat.messages[1].role", "must be assistant"),
    (chat((USER, "")), "spec.chat.messages[0].content", "is empty"),
    (chat((USER, "x"), (ASSISTANT, ""), (USER, "")), "spec.chat.messages[2].content", "is empty"),
    (chat((SYSTEM, "x")), "spec.chat.messages", "has no user message"),
    (chat((USER, "x"), (ASSISTANT, "y")), "spec.chat.messages[1].role", "the last must be user"),
    (chat((USER, "see [INST]")), "spec.chat.messages[0].content", "[INST]"),
    (chat((USER, "x" * 5000)), "spec.chat", "this model accepts 4095"),
    (chat((USER, "hi"), model="base"), "spec.chat", "base model without a chat format"),
]


@pytest.mark.parametrize(("bad", "field", "fact"), REFUSED, ids=[f"{n} {row[1]}" for n, row in enumerate(REFUSED)])
async def test_a_field_beyond_its_bound_is_named(gateway: RunningGateway, bad: Spec, field: str, fact: str) -> None:
    """INVALID_ARGUMENT with the field's path and the fact."""
    error = await error_of(gateway.stub.Generate(generation_pb2.GenerateRequest(spec=bad)))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    _, told, _ = details_of(error)
    assert any(v.field == field and fact in v.description for v in told.field_violations), told


async def test_all_violations_come_at_once(gateway: RunningGateway) -> None:
    """Sampling, stopping, output and prompt are all looked at."""
    request = prompt("x" * 5000)
    request.spec.sampling.temperature = -1
    request.spec.sampling.n = 17
    request.spec.stopping.stop_strings.append("y" * (MAX_STOP_STRING_BYTES + 1))
    request.spec.output.prompt_logprobs = True
    error = await error_of(gateway.stub.Generate(request))

    _, told, _ = details_of(error)
    assert {v.field for v in told.field_violations} == {
        "spec.sampling.temperature",
        "spec.sampling.n",
        "spec.stopping.stop_strings[0]",
        "spec.output.prompt_logprobs",
        "spec.prompt",
    }


@pytest.mark.parametrize("method", ["Generate", "Complete", "SubmitGeneration"])
@pytest.mark.parametrize("field", ["prompt", "chat", "token_ids"])
async def test_what_is_far_too_long_is_refused_unread(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, method: str, field: str
) -> None:
    """Its length alone tells, so that a request of 4 MiB costs no second of CPU: nothing of it is encoded."""
    monkeypatch.delattr(PromptTokenizer, "encode_text")
    monkeypatch.setattr(prompts, "_check_ids", None)
    long = {
        "prompt": spec(prompt="x" * 100_000),
        "chat": chat((USER, "x" * 3000), (ASSISTANT, "y" * 3000), (USER, "z")),
        "token_ids": ids(*[3] * 100_000),
    }[field]
    name = f"{method}Request"
    call = getattr(gateway.stub, method)(getattr(generation_pb2, name)(spec=long))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call.read() if method == "Generate" else call)

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    (violation,) = details_of(caught.value)[1].field_violations
    assert violation.field == f"spec.{field}"
    assert "this model accepts 4095" in violation.description


@pytest.mark.parametrize("request_id", ["", "r" * 129])
async def test_a_request_id_has_1_to_128_characters(gateway: RunningGateway, request_id: str) -> None:
    """Given and empty is a mistake, not absent."""
    error = await error_of(gateway.stub.Generate(prompt(request_id=request_id)))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(error)[1].field_violations[0].field == "request_id"


async def test_bytes_that_are_no_request_are_a_typed_error(gateway: RunningGateway) -> None:
    """Text that is no UTF-8, as other languages let pass, is told to the caller."""
    broken = b"\x0a\x06\x12\x04\xff\xfe\xfd\xfc"  # spec.prompt of four bytes that are no UTF-8
    call: Any = gateway.channel.unary_stream("/llamaherd.v1.GenerationService/Generate")
    error = await error_of(call(broken))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "UTF-8" in details_of(error)[1].field_violations[0].description


@pytest.mark.parametrize(
    "good",
    [
        sampling(temperature=0, top_k=0, top_p=1, min_p=0, typical_p=1, repetition_penalty=1, n=1, seed=0),
        sampling(temperature=100, top_k=VOCABULARY, frequency_penalty=-100, presence_penalty=100, n=16),
        sampling(min_p=1, typical_p=1e-30, repetition_penalty=100, logit_bias={0: -100, VOCABULARY - 1: 100}),
        sampling(top_p=1e-30, repetition_penalty=1e-30, logit_bias=dict.fromkeys(range(VOCABULARY), 1.0)),
        stopping(max_new_tokens=CONTEXT - 4, max_total_tokens=CONTEXT, max_time_ms=2**32 - 1, min_new_tokens=0),
        stopping(stop_strings=["é" * 128] * 16, ignore_eos=False),
        stopping(stop_token_ids=[VOCABULARY - 1] * 64, ignore_eos=True, min_new_tokens=9, max_new_tokens=9),
        output(logprobs=True, top_logprobs=20, echo=True, prompt_logprobs=True),
        output(logprobs=False, top_logprobs=0, echo=False, prompt_logprobs=False),
        much(n=16, top_logprobs=6),
        spec(prompt="x" * (CONTEXT - 3)),
        spec(priority=common_pb2.PRIORITY_LOW, resume_window_ms=600_000),
        ids(*[VOCABULARY - 1] * (CONTEXT - 1)),
        ids(1),  # BOS alone
        chat((SYSTEM, ""), (USER, "x"), (ASSISTANT, ""), (USER, "z")),
        chat((USER, "see [INST]"), allow=True),
    ],
)
async def test_values_at_their_bounds_are_taken(gateway: RunningGateway, good: Spec) -> None:
    """Each of them is accepted."""
    call, received = await open_stream(gateway, generation_pb2.GenerateRequest(spec=good))
    call.cancel()

    assert received.messages[0].accepted.settings.model == "chat"
