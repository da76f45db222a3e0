"""What ModelService refuses: every wrong field by name, models that are not there, and any request or bytes at all."""

from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamaherd.v1 import common_pb2, model_pb2
from service.model_servicer import MAX_DETOKENIZED_IDS, MAX_TOKENIZED_BYTES
from tests.service.bundles import PIECES
from tests.service.error_details import details_of
from tests.service.gateways import RunningGateway, answer_of
from tests.service.test_model_service import specs

METHODS = model_pb2.DESCRIPTOR.services_by_name["ModelService"].methods_by_name.keys()
ROLE_9: Any = common_pb2.ChatMessage(role=9, content="x")  # type: ignore[arg-type]  # no role of ours
REFUSED: list[tuple[str, Any, str, str]] = [
    ("ListModels", model_pb2.ListModelsRequest(page_size=1001), "page_size", "is 1001; at most 1000"),
    ("ListModels", model_pb2.ListModelsRequest(page_token="%"), "page_token", "is none of ListModels"),
    ("ListModels", model_pb2.ListModelsRequest(page_token="/w=="), "page_token", "is none of ListModels"),
    ("GetModel", model_pb2.GetModelRequest(), "name", "several models are served: base, letters, words"),
    ("GetModel", model_pb2.GetModelRequest(name="x" * 129), "name", "has 129 characters; at most 128"),
    ("Tokenize", model_pb2.TokenizeRequest(model="words"), "input", "is missing: one of text and chat"),
    ("Tokenize", model_pb2.TokenizeRequest(text="x"), "model", "several models are served: base, letters, words"),
    (
        *("Tokenize", model_pb2.TokenizeRequest(model="words", text="x" * MAX_TOKENIZED_BYTES)),
        *("input", f"at most {MAX_TOKENIZED_BYTES}"),
    ),
    ("Tokenize", model_pb2.TokenizeRequest(model="words", chat={}), "chat.messages", "has 0 messages; 1 to 1024"),
    (
        *("Tokenize", model_pb2.TokenizeRequest(model="words", chat={"messages": [ROLE_9]})),
        *("chat.messages[0].role", "is 9; must be system, user or assistant"),
    ),
    (
        *("Tokenize", model_pb2.TokenizeRequest(model="base", chat={"messages": [{"role": 2, "content": "x"}]})),
        *("chat", "is a base model without a chat format"),
    ),
    (
        *("Tokenize", model_pb2.TokenizeRequest(model="words", chat={"messages": [{"role": 2, "content": "[INST]"}]})),
        *("chat.messages[0].content", "contains the chat tag [INST]"),
    ),
    ("Detokenize", model_pb2.DetokenizeRequest(model="base", ids=[1, len(PIECES)]), "ids[1]", "ids are 0 to"),
    (
        *("Detokenize", model_pb2.DetokenizeRequest(model="base", ids=[1] * (MAX_DETOKENIZED_IDS + 1))),
        *("ids", f"has {MAX_DETOKENIZED_IDS + 1} ids; at most {MAX_DETOKENIZED_IDS}"),
    ),
    ("CountTokens", model_pb2.CountTokensRequest(), "spec.input", "is missing: one of prompt, chat and token_ids"),
    ("CountTokens", model_pb2.CountTokensRequest(spec={"prompt": "x"}), "spec.model", "several models are served"),
    (
        *("CountTokens", model_pb2.CountTokensRequest(spec={"model": "base", "token_ids": {"ids": [9999]}})),
        *("spec.token_ids.ids[0]", "is 9999; ids are 0 to"),
    ),
    (
        *(
            "CountTokens",
            model_pb2.CountTokensRequest(spec={"model": "base", "token_ids": {"ids": [3] * 20_000 + [999]}}),
        ),
        *("spec.token_ids.ids[20000]", "is 999; ids are 0 to"),
    ),
]


@pytest.mark.parametrize(("method", "request_", "field", "text"), REFUSED)
async def test_a_wrong_field_is_named(stub: Any, method: str, request_: Any, field: str, text: str) -> None:
    """INVALID_ARGUMENT with the field's path, and what is wrong with it."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(stub, method)(request_)

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    (violation,) = details_of(caught.value)[1].field_violations
    assert violation.field == field
    assert text in violation.description


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("GetModel", model_pb2.GetModelRequest(name="nobody")),
        ("Tokenize", model_pb2.TokenizeRequest(model="nobody", text="x")),
        ("Detokenize", model_pb2.DetokenizeRequest(model="nobody", ids=[1])),
        ("CountTokens", model_pb2.CountTokensRequest(spec={"model": "nobody", "prompt": "x"})),
    ],
)
async def test_an_unknown_model_is_told_with_those_that_are_known(stub: Any, method: str, request_: Any) -> None:
    """NOT_FOUND; the text names what is there."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(stub, method)(request_)

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert details_of(caught.value)[0].reason == "UNKNOWN_MODEL"
    assert "base, gone, letters, words" in (caught.value.details() or "")


names = st.sampled_from(["words", "base", "", "nobody"]) | st.text(max_size=8)
chats = st.builds(
    common_pb2.ChatInput,
    messages=st.lists(
        st.builds(common_pb2.ChatMessage, role=st.sampled_from([0, 1, 2, 3, 9]), content=st.text(max_size=20)),
        max_size=3,
    ),
    allow_format_tags=st.booleans(),
)
messages = st.one_of(
    st.builds(
        model_pb2.ListModelsRequest,
        page_size=st.integers(0, 2**32 - 1) | st.integers(0, 4),
        page_token=st.sampled_from(["", "d29yZHM="]) | st.text(max_size=8),
    ),
    st.builds(model_pb2.GetModelRequest, name=names),
    st.builds(model_pb2.TokenizeRequest, model=names, text=st.text(max_size=40), add_bos=st.none() | st.booleans()),
    st.builds(model_pb2.TokenizeRequest, model=names, chat=chats),
    st.builds(model_pb2.DetokenizeRequest, model=names, ids=st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 9))),
    st.builds(model_pb2.CountTokensRequest, spec=specs),
)


@given(request_=messages)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
async def test_any_request_is_answered_or_refused_by_name(stub: Any, request_: Any) -> None:
    """Every field of every request at and beyond its bounds."""
    method = type(request_).__name__.removesuffix("Request")
    answer = await answer_of(getattr(stub, method)(request_, timeout=20))

    if isinstance(answer, grpc.aio.AioRpcError):
        info, bad, _ = details_of(answer)
        assert (answer.code(), info.reason, bool(bad.field_violations)) in (
            (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", True),
            (grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL", False),
        )


@given(method=st.sampled_from(sorted(METHODS)), body=st.binary(max_size=100))
@settings(max_examples=200, deadline=None)
async def test_any_bytes_get_a_typed_answer(models_gateway: RunningGateway, method: str, body: bytes) -> None:
    """Bytes that are no request at all, too: never INTERNAL, never UNKNOWN."""
    call: Any = models_gateway.channel.unary_unary(f"/llamaherd.v1.ModelService/{method}")
    answer = await answer_of(call(body, timeout=20))

    if isinstance(answer, grpc.aio.AioRpcError):
        assert answer.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), answer
        assert details_of(answer)[0].domain == "llamaherd.dev"
