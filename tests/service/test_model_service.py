"""ModelService over a real channel: what is served, and encoding that agrees with SentencePiece and with Generate."""

import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import grpc
import pytest
import redis.asyncio
import sentencepiece
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract import keys
from contract.broker import Broker
from contract.bundle import ModelBundle
from llamaherd.v1 import common_pb2, generation_pb2, model_pb2, model_pb2_grpc
from service.chat_format import Message, Role
from service.health import model_service
from service.large_inputs import LARGE_BYTES
from service.model_servicer import MAX_DETOKENIZED_IDS, PACKED_TOKENS
from service.tokenizer import PromptTokenizer
from tests.redis_server import start_valkey
from tests.service.bundles import CONTEXT, PIECES, bundle
from tests.service.conftest import short_folder
from tests.service.error_details import details_of
from tests.service.gateways import RunningGateway, answer_of, prompt, running_gateway
from tests.service.scripted_worker import scripted_worker
from tests.service.test_tokenizer import TEXTS
from tests.tokenizer_models import train_llama2_like
from tests.until import until

VOCABULARY = train_llama2_like()
REFERENCE = sentencepiece.SentencePieceProcessor(model_proto=VOCABULARY)
slow = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


async def test_a_model_is_described(stub: Any, spoken: ModelBundle) -> None:
    """Everything that a caller needs to know before a first request."""
    answer = await stub.GetModel(model_pb2.GetModelRequest(name="words"))

    assert answer.model.name == "words"
    assert answer.model.context_length == 256
    assert answer.model.vocabulary_size == REFERENCE.piece_size()
    assert answer.model.quantization == model_pb2.QUANTIZATION_NF4_DOUBLE_QUANT
    assert answer.model.chat_format == model_pb2.CHAT_FORMAT_LLAMA2
    assert answer.model.live_workers == 1
    assert answer.model.bundle_digest == spoken.digest


async def test_defaults_are_what_a_generation_without_knobs_uses(stub: Any, models_gateway: RunningGateway) -> None:
    """All of them but the seed, which is drawn each time, and the bound that depends on the prompt."""
    for name in ("base", "letters", "words"):
        told = (await stub.GetModel(model_pb2.GetModelRequest(name=name))).model.defaults
        spec = common_pb2.GenerationSpec(model=name, prompt="x")
        call = models_gateway.stub.Generate(generation_pb2.GenerateRequest(spec=spec))
        used = (await call.read()).accepted.settings
        call.cancel()
        assert not told.sampling.HasField("seed")
        used.sampling.ClearField("seed")
        assert told.sampling == used.sampling
        assert told.model == name
        assert told.stopping.max_total_tokens == (256 if name == "words" else CONTEXT)
    told = (await stub.GetModel(model_pb2.GetModelRequest(name="letters"))).model.defaults
    assert told.stopping.max_new_tokens == 77
    assert told.sampling.temperature == pytest.approx(0.6)


async def test_pages_together_hold_each_live_model_once(stub: Any) -> None:
    """By name; the last page has no token. A model without live workers is in none, but can be asked for."""
    for page_size in (1, 2, 3, 100):
        names: list[str] = []
        token = ""
        while True:
            page = await stub.ListModels(model_pb2.ListModelsRequest(page_size=page_size, page_token=token))
            assert len(page.models) <= page_size
            names += [model.name for model in page.models]
            token = page.next_page_token
            if not token:
                break
        assert names == ["base", "letters", "words"]
    gone = await stub.GetModel(model_pb2.GetModelRequest(name="gone"))
    assert gone.model.live_workers == 0


@given(text=TEXTS)
@slow
async def test_tokens_of_a_text_are_sentencepieces_and_cover_it(stub: Any, text: str) -> None:
    """In order, byte for byte; BOS comes first unless it is not wanted, and stands for nothing."""
    answer = await stub.Tokenize(model_pb2.TokenizeRequest(model="words", text=text))
    bare = await stub.Tokenize(model_pb2.TokenizeRequest(model="words", text=text, add_bos=False))

    assert [token.id for token in answer.tokens] == [REFERENCE.bos_id(), *REFERENCE.encode(text)]
    assert (answer.tokens[0].begin, answer.tokens[0].end) == (0, 0)
    assert list(answer.tokens[1:]) == list(bare.tokens)
    assert not answer.rendered_chat
    encoded = text.encode()
    assert b"".join(encoded[token.begin : token.end] for token in bare.tokens) == encoded


async def test_a_long_answer_is_whole(stub: Any) -> None:
    """It is packed some tokens at a time; a conversation's text comes with it."""
    text = "ab" * (2 * PACKED_TOKENS)
    answer = await stub.Tokenize(model_pb2.TokenizeRequest(model="letters", text=text))
    assert [(token.begin, token.end) for token in answer.tokens] == [(0, 0), (0, 0), *pairwise(range(len(text) + 1))]

    chat = common_pb2.ChatInput(messages=[common_pb2.ChatMessage(role=common_pb2.ROLE_USER, content=text)])
    answer = await stub.Tokenize(model_pb2.TokenizeRequest(model="letters", chat=chat))
    assert answer.rendered_chat == f"[INST] {text} [/INST]"
    assert answer.tokens[-1].end == len(answer.rendered_chat)


async def test_a_conversation_is_encoded_as_generate_encodes_it(stub: Any, spoken: ModelBundle) -> None:
    """The answer has the text that the format makes, which the offsets count in."""
    chat = common_pb2.ChatInput(
        messages=[
            common_pb2.ChatMessage(role=common_pb2.ROLE_SYSTEM, content="Be kind."),
            common_pb2.ChatMessage(role=common_pb2.ROLE_USER, content="Hello 日本"),
        ]
    )
    answer = await stub.Tokenize(model_pb2.TokenizeRequest(model="words", chat=chat))

    messages = [Message(Role.SYSTEM, "Be kind."), Message(Role.USER, "Hello 日本")]
    assert [token.id for token in answer.tokens] == PromptTokenizer(spoken).encode_chat(messages, False)
    assert answer.rendered_chat == "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHello 日本 [/INST]"
    encoded = answer.rendered_chat.encode()
    assert b"".join(encoded[token.begin : token.end] for token in answer.tokens[1:]) == encoded


@given(ids=st.lists(st.integers(0, 899) | st.integers(0, 258), max_size=30))
@slow
async def test_ids_become_text_as_sentencepiece_has_it(stub: Any, ids: list[int]) -> None:
    """Control tokens and broken characters among them."""
    answer = await stub.Detokenize(model_pb2.DetokenizeRequest(model="words", ids=ids))
    assert answer.text == REFERENCE.decode(ids)


specs = st.one_of(
    st.builds(common_pb2.GenerationSpec, prompt=st.text(min_size=1, max_size=40)),
    st.builds(
        common_pb2.GenerationSpec,
        token_ids=st.builds(common_pb2.TokenIds, ids=st.lists(st.integers(0, 899), min_size=1, max_size=20)),
    ),
    st.text(max_size=40).map(
        lambda text: common_pb2.GenerationSpec(
            chat=common_pb2.ChatInput(messages=[common_pb2.ChatMessage(role=common_pb2.ROLE_USER, content=text)])
        )
    ),
)


@given(spec=specs)
@slow
async def test_the_count_is_generates(stub: Any, models_gateway: RunningGateway, spec: Any) -> None:
    """For prompts, conversations and ids alike; what Generate refuses for its input is refused here with the same."""
    spec.model = "words"
    call = models_gateway.stub.Generate(generation_pb2.GenerateRequest(spec=spec))
    counted = await answer_of(stub.CountTokens(model_pb2.CountTokensRequest(spec=spec)))
    accepted = await answer_of(call.read())
    call.cancel()
    if isinstance(counted, grpc.aio.AioRpcError):
        assert (counted.code(), counted.details()) == (accepted.code(), accepted.details())
    else:
        assert counted.prompt_tokens == accepted.accepted.prompt_tokens


async def test_large_inputs_hold_up_neither_prompts_nor_small_inputs(
    stub: Any, models_gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than the event loop has threads, each as if it took for ever."""
    encode, may_go_on, num_held = PromptTokenizer.encode_text, threading.Event(), 0

    def slow_if_large(self: PromptTokenizer, text: str) -> list[int]:
        nonlocal num_held
        if len(text) > LARGE_BYTES:
            num_held += 1
            assert may_go_on.wait(60)
            return [1]
        return encode(self, text)

    monkeypatch.setattr(PromptTokenizer, "encode_text", slow_if_large)
    large = model_pb2.CountTokensRequest(spec={"model": "letters", "prompt": "x" * (LARGE_BYTES + 1)})
    small = model_pb2.CountTokensRequest(spec={"model": "letters", "prompt": "x"})
    calls = [stub.CountTokens(large) for _ in range(40)]
    try:
        await until(lambda: num_held)
        assert (await stub.CountTokens(small)).prompt_tokens == 3
        generating = models_gateway.stub.Generate(generation_pb2.GenerateRequest(spec=small.spec))
        assert (await generating.read()).accepted.prompt_tokens == 3
        generating.cancel()
        assert num_held == 1, "the others wait for it"
        calls.pop().cancel()
    finally:
        may_go_on.set()
    assert [(await call).prompt_tokens for call in calls] == [2] * len(calls)


async def test_a_prompt_beyond_the_context_is_counted(stub: Any) -> None:
    """Who asks wants to know by how much it is too long."""
    spec = common_pb2.GenerationSpec(model="letters", prompt="x" * 5000)
    answer = await stub.CountTokens(model_pb2.CountTokensRequest(spec=spec))
    assert answer.prompt_tokens == 5002  # BOS and the space before the text


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("Tokenize", model_pb2.TokenizeRequest(model="words", text="x")),
        ("Tokenize", model_pb2.TokenizeRequest(model="words", chat={"messages": [{"role": 2, "content": "x"}]})),
        ("Detokenize", model_pb2.DetokenizeRequest(model="words", ids=[5])),
        ("CountTokens", model_pb2.CountTokensRequest(spec={"model": "words", "prompt": "x"})),
    ],
)
async def test_others_are_answered_while_a_text_is_encoded(
    stub: Any, models_gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, method: str, request_: Any
) -> None:
    """It takes a thread, and may take seconds; here it takes until somebody else has been answered."""
    answered = threading.Event()

    def after_others(name: str) -> Callable[..., Any]:
        own: Callable[..., Any] = getattr(PromptTokenizer, name)

        def encode(*arguments: Any) -> Any:
            assert answered.wait(10), "nobody was answered"
            return own(*arguments)

        return encode

    for name in ("encode_spans", "encode_chat_spans", "encode_prompt", "decode"):
        monkeypatch.setattr(PromptTokenizer, name, after_others(name))
    call = getattr(stub, method)(request_)
    await health_pb2_grpc.HealthStub(models_gateway.channel).Check(health_pb2.HealthCheckRequest())
    await stub.GetModel(model_pb2.GetModelRequest(name="words"))
    answered.set()
    await call


async def test_bounds_are_as_published(stub: Any) -> None:
    """What stands at a bound is answered, even if it is large."""
    most = model_pb2.DetokenizeRequest(model="letters", ids=[PIECES.index(("a", "normal"))] * MAX_DETOKENIZED_IDS)
    answer = await stub.Detokenize(most)
    assert answer.text == "a" * MAX_DETOKENIZED_IDS


async def test_one_model_needs_no_name(tmp_path_factory: pytest.TempPathFactory) -> None:
    """And what is known is encoded while Redis is away; only who lives cannot be told then."""
    server = start_valkey(short_folder(tmp_path_factory))
    broker = Broker.connect(server.url)
    async with scripted_worker(broker, {"letters": bundle()}), running_gateway(server.url) as gateway:
        stub: Any = model_pb2_grpc.ModelServiceStub(gateway.channel)
        assert (await stub.GetModel(model_pb2.GetModelRequest())).model.name == "letters"
        server.kill()

        async def is_noticed() -> bool:
            return isinstance(await answer_of(stub.ListModels(model_pb2.ListModelsRequest())), grpc.aio.AioRpcError)

        await until(is_noticed)
        for ask in (stub.ListModels(model_pb2.ListModelsRequest()), stub.GetModel(model_pb2.GetModelRequest())):
            error = await answer_of(ask)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert details_of(error)[0].reason == "BROKER_DOWN"
        assert len((await stub.Tokenize(model_pb2.TokenizeRequest(text="ab"))).tokens) == 4
        assert (await stub.CountTokens(model_pb2.CountTokensRequest(spec={"prompt": "ab"}))).prompt_tokens == 4
        server.start()
    await broker.close()
    server.kill()


async def test_a_model_that_nobody_announces_any_more_is_unknown(tmp_path_factory: pytest.TempPathFactory) -> None:
    """As long as it was announced, its workers may come back; when that has expired, it is as if it had never been."""
    server = start_valkey(short_folder(tmp_path_factory))
    broker = Broker.connect(server.url)
    gone = bundle()
    await broker.announce("gone", gone.digest, gone.to_bytes())
    async with running_gateway(server.url) as gateway:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gateway.stub.Generate(prompt(model="gone")).read()
        assert details_of(caught.value)[0].reason == "NO_WORKER"
        assert details_of(caught.value)[2].ToMilliseconds() > 0
        async with redis.asyncio.Redis.from_url(server.url) as client:
            await client.delete(keys.model("gone"), keys.MODELS)  # as when a week has passed

        async def is_unknown() -> bool:
            error = await answer_of(gateway.stub.Generate(prompt(model="gone")).read())
            return bool(error.code() is grpc.StatusCode.NOT_FOUND)

        await until(is_unknown)
    await broker.close()
    server.kill()


async def test_a_model_of_a_later_version_does_not_hide_the_others(tmp_path_factory: pytest.TempPathFactory) -> None:
    """During an update: its bundle cannot be read here."""
    server = start_valkey(short_folder(tmp_path_factory))
    broker = Broker.connect(server.url)
    async with scripted_worker(broker, {"letters": bundle()}) as worker, running_gateway(server.url) as gateway:
        await broker.announce("later", "1" * 64, b'{"version":99}')
        worker.worker_ids["later"] = keys.new_id()  # it beats from now on
        health = health_pb2_grpc.HealthStub(gateway.channel)
        watched = health.Watch(health_pb2.HealthCheckRequest(service=model_service("later")))
        while (await watched.read()).status != health_pb2.HealthCheckResponse.SERVING:
            pass
        watched.cancel()
        stub: Any = model_pb2_grpc.ModelServiceStub(gateway.channel)
        answer = await stub.ListModels(model_pb2.ListModelsRequest())
    await broker.close()
    server.kill()
    assert [model.name for model in answer.models] == ["letters"]
