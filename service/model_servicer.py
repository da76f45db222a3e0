"""llamaherd.v1.ModelService: what is served, and text encoded and decoded exactly as generations are."""

import base64
import binascii
import functools
from collections.abc import Mapping, Sequence
from itertools import chain, islice

import structlog

from contract.bundle import ChatFormatKind, MalformedBundle
from contract.errors import BrokerDown, FieldViolation, InvalidRequest, NoWorker, UnknownModel
from contract.messages import Job
from llamaherd.v1 import common_pb2, model_pb2
from service import events
from service.context import Context
from service.knobs import resolve_sampling, resolve_stopping
from service.large_inputs import LargeInputs
from service.models import Models, ServedModel
from service.prompts import check_chat, check_input, check_model_name, encode_input, has_chat_format, messages_of
from service.rpc import Handler
from service.tokenizer import PromptTokenizer, TokenSpan
from service.violations import Violations

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
MAX_TOKENIZED_BYTES = 1024 * 1024  # an answer is up to 16 bytes for each of these
MAX_DETOKENIZED_IDS = 1_000_000
PACKED_TOKENS = 1024

log = structlog.get_logger(__name__)

_QUANTIZATIONS = {
    "fp16": model_pb2.QUANTIZATION_NONE,
    "int8": model_pb2.QUANTIZATION_INT8,
    "nf4": model_pb2.QUANTIZATION_NF4,
    "nf4-dq": model_pb2.QUANTIZATION_NF4_DOUBLE_QUANT,
}
_CHAT_FORMATS = {
    ChatFormatKind.NONE: model_pb2.CHAT_FORMAT_NONE,
    ChatFormatKind.LLAMA2: model_pb2.CHAT_FORMAT_LLAMA2,
    ChatFormatKind.JINJA: model_pb2.CHAT_FORMAT_TEMPLATE,
}


class ModelServicer:
    """The RPCs. A known model's texts are encoded whether or not a worker of it lives, and while Redis is away."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._large = LargeInputs()

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """By the names of the methods."""
        return {
            "ListModels": self.list_models,
            "GetModel": self.get_model,
            "Tokenize": self.tokenize,
            "Detokenize": self.detokenize,
            "CountTokens": self.count_tokens,
        }

    async def list_models(self, request: model_pb2.ListModelsRequest, context: Context) -> model_pb2.ListModelsResponse:
        """A page of the models that live workers serve, by name. A page token is the name of the last one told."""
        if request.page_size > MAX_PAGE_SIZE:
            raise InvalidRequest([FieldViolation("page_size", f"is {request.page_size}; at most {MAX_PAGE_SIZE}")])
        page_size = request.page_size or DEFAULT_PAGE_SIZE
        last_told = _parse_page_token(request.page_token)
        if self._models.is_broker_down:
            raise BrokerDown
        live = self._models.live
        names = sorted(name for name in live if name > last_told)
        response = model_pb2.ListModelsResponse()
        for name in names[:page_size]:
            try:
                response.models.append(_describe(await self._models.get(name), live[name]))
            except (UnknownModel, NoWorker):
                continue  # it went between the look at the pool and this one
            except MalformedBundle as error:  # of a later version: the others are told all the same
                log.warning("model cannot be read", model=name, error=str(error))
        if len(names) > page_size:
            response.next_page_token = _page_token(names[page_size - 1])
        return response

    async def get_model(self, request: model_pb2.GetModelRequest, context: Context) -> model_pb2.GetModelResponse:
        """One model; without live workers too, as long as its announcement lasts."""
        violations = Violations()
        model = await self._find(request.name, "name", violations)
        if self._models.is_broker_down:
            raise BrokerDown
        return model_pb2.GetModelResponse(model=_describe(model, self._models.live.get(model.name, 0)))

    async def tokenize(self, request: model_pb2.TokenizeRequest, context: Context) -> bytes:
        """TokenizeResponse: the ids of a text or a conversation, and the bytes that each stands for."""
        violations = Violations()
        if (size := request.ByteSize()) > MAX_TOKENIZED_BYTES:
            violations.add("input", f"makes a request of {size} bytes; at most {MAX_TOKENIZED_BYTES}")
        match request.WhichOneof("input"):
            case None:
                violations.add("input", "is missing: one of text and chat is required")
            case "chat":
                check_chat(request.chat, "chat", violations)
        model = await self._find(request.model, "model", violations)
        if request.HasField("chat"):
            has_chat_format(model, "chat", violations)
            violations.raise_if_any()
        return await self._large.run(size, _tokenized, request, model.tokenizer, model.bundle.bos_id)

    async def detokenize(self, request: model_pb2.DetokenizeRequest, context: Context) -> model_pb2.DetokenizeResponse:
        """The text of ids, as the text of an answer is made of them."""
        violations = Violations()
        if len(request.ids) > MAX_DETOKENIZED_IDS:
            violations.add("ids", f"has {len(request.ids)} ids; at most {MAX_DETOKENIZED_IDS}")
        model = await self._find(request.model, "model", violations)
        return await self._large.run(request.ByteSize(), _detokenized, request.ids, model)

    async def count_tokens(
        self, request: model_pb2.CountTokensRequest, context: Context
    ) -> model_pb2.CountTokensResponse:
        """The length of a prompt, by the code that encodes it for a generation; one too long is counted too."""
        violations = Violations()
        check_input(request.spec, violations)
        model = await self._find(request.spec.model, "spec.model", violations)
        in_thread = functools.partial(self._large.run, request.ByteSize())
        prompt_ids = await encode_input(request.spec, model, violations, in_thread=in_thread)
        violations.raise_if_any()
        return model_pb2.CountTokensResponse(prompt_tokens=len(prompt_ids))

    async def _find(self, name: str, field: str, violations: Violations) -> ServedModel:
        """The model that `field` names. Raises InvalidRequest if there are violations, and as Models does."""
        check_model_name(name, field, violations)
        violations.raise_if_any()
        return await self._models.get(self._models.name_of(name, field))


def _describe(model: ServedModel, live_workers: int) -> model_pb2.Model:
    bundle = model.bundle
    return model_pb2.Model(
        name=model.name,
        context_length=bundle.context_length,
        vocabulary_size=bundle.vocab_size,
        quantization=_QUANTIZATIONS.get(bundle.quantization, model_pb2.QUANTIZATION_UNSPECIFIED),
        chat_format=_CHAT_FORMATS[bundle.chat_format.kind],
        live_workers=live_workers,
        defaults=_defaults(model),
        bundle_digest=model.digest,
    )


def _defaults(model: ServedModel) -> common_pb2.Settings:
    """What a request without any knob gets, by the code that fills them in; without the seed, which is drawn."""
    job = Job(
        generation_id="",
        model=model.name,
        job_class="normal",
        prompt_ids=(),
        sampling=resolve_sampling(common_pb2.Sampling(), model.bundle, Violations()),
        stopping=resolve_stopping(common_pb2.Stopping(), 0, model.bundle),
        strip_leading_space=False,
    )
    settings = events.settings_of(job)
    settings.sampling.ClearField("seed")
    settings.stopping.max_total_tokens = model.bundle.context_length
    return settings


def _tokenized(request: model_pb2.TokenizeRequest, tokenizer: PromptTokenizer, bos_id: int) -> bytes:
    """TokenizeResponse. Raises InvalidRequest for a conversation that the format refuses.

    Packed some at a time, since messages joined are one: no step of it keeps Python's lock for long.
    """
    rendered = ""
    if request.HasField("chat"):
        rendered, spans = tokenizer.encode_chat_spans(messages_of(request.chat), request.chat.allow_format_tags)
    else:
        spans = tokenizer.encode_spans(request.text)
        if not request.HasField("add_bos") or request.add_bos:
            spans = chain([TokenSpan(bos_id, 0, 0)], spans)
    packed = bytearray()
    while some := list(islice(spans, PACKED_TOKENS)):
        tokens = [model_pb2.TokenSpan(id=span.id, begin=span.begin, end=span.end) for span in some]
        packed += model_pb2.TokenizeResponse(tokens=tokens).SerializeToString()
    packed += model_pb2.TokenizeResponse(rendered_chat=rendered).SerializeToString()
    return bytes(packed)


def _detokenized(ids: Sequence[int], model: ServedModel) -> model_pb2.DetokenizeResponse:
    """Decode. Raises InvalidRequest for an id that the model does not have."""
    size = model.bundle.vocab_size
    wrong = next((index for index, id_ in enumerate(ids) if id_ >= size), None)
    if wrong is not None:
        raise InvalidRequest([FieldViolation(f"ids[{wrong}]", f"is {ids[wrong]}; ids are 0 to {size - 1}")])
    return model_pb2.DetokenizeResponse(text=model.tokenizer.decode(ids))


def _page_token(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _parse_page_token(token: str) -> str:
    """The name in it; '' stands before every name. Raises InvalidRequest."""
    try:
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise InvalidRequest([FieldViolation("page_token", "is none of ListModels")]) from None
