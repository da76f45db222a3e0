"""Each method of the client as what it asks for: arguments in, a call out. Nothing here does I/O.

The docstrings are those of `Client`'s and `AsyncClient`'s methods: `methods.py` binds each to both.
"""

import functools
import uuid
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, Unpack

from google.protobuf.message import Message

from llamaherd.client.errors import DeadlineExceeded, DeadlineTooShort, HerdError
from llamaherd.client.resume import Reading
from llamaherd.client.spec import Input, Knobs, build_spec
from llamaherd.client.tries import Tries
from llamaherd.v1 import common_pb2, generation_pb2, model_pb2

Answer = TypeVar("Answer")

_GENERATION = "/llamaherd.v1.GenerationService/"
_MODEL = "/llamaherd.v1.ModelService/"
MOST_MODELS = 1000  # of one page, by the API
FAREWELL_TIMEOUT_S = 3.0  # how long each call of a farewell may take


Farewell = Generator["UnaryCall[Any]", Any, None]
"""The calls that end what a caller leaves behind: each is answered before the next is asked for."""


@dataclass(frozen=True, slots=True)
class UnaryCall(Generic[Answer]):
    """One request, one answer; repeating it changes nothing. `parse` makes the answer of the response's bytes.

    Attributes:
        farewell: what to call if the caller stops waiting, by its deadline too; None where nothing is left behind.
    """

    path: str
    request: Message
    parse: Callable[[bytes], Answer]
    timeout_s: float | None
    farewell: Callable[[], Farewell] | None = None


@dataclass(frozen=True, slots=True)
class StreamCall:
    """A generation to read, and what to call if its reader leaves it early.

    Attributes:
        may_come_back: its caller has a way to, so the deadline alone ends nothing.
    """

    reading: Reading
    timeout_s: float | None
    farewell: Callable[[Reading], Farewell]
    may_come_back: bool = False

    def ends(self, error: BaseException, tries: Tries) -> bool:
        """Whether a stream that ends so ends what it started: also if it gave up since its deadline is too near."""
        is_late = tries.is_out_of_time and self.reading.is_known
        return (is_late and not self.may_come_back) or ends_what_it_started(error, may_come_back=self.may_come_back)


def generate(
    prompt: Input, *, request_id: str | None = None, timeout_s: float | None = None, **knobs: Unpack[Knobs]
) -> StreamCall:
    """Start a generation and stream it: iterate over the result for its deltas.

    The stream survives the loss of connections and gateways: no token is lost, none comes twice. Nothing is sent
    before the iteration begins. Breaking out of it, `close`, the client's end and `timeout_s` cancel the generation.

    Args:
        prompt: text to continue, a list of messages (`user("...")`), a list of token ids, or a GenerationSpec.
        request_id: makes the call idempotent over processes too; without it, one is made for this call.
        timeout_s: until DeadlineExceeded, over all attempts; default: the client's. A call that was given a
            request_id or a resume_window_ms may be made again, so then the generation goes on for its window.
        knobs: temperature, max_new_tokens, ...; see `Knobs`.
    """
    request = generation_pb2.GenerateRequest(spec=build_spec(prompt, knobs), request_id=request_id or _new_id())
    return StreamCall(Reading(request), timeout_s, cancel_read, _may_come_back(request.spec, request_id))


def attach(
    generation_id: str, from_position: int = 0, chain: int | None = None, *, timeout_s: float | None = None
) -> StreamCall:
    """Read a generation that any call has started, running or finished, as `generate` does.

    Leaving the iteration leaves the generation as it is.

    Args:
        from_position: the first token wanted, by its position in the generation.
        chain: of the token before it (`stream.chain`); the service then proves that nothing forked, or it is DataLoss.
    """
    reading = Reading(None, generation_id=generation_id, from_position=from_position, chain=chain)
    return StreamCall(reading, timeout_s, leave_alone)


def complete(
    prompt: Input, *, request_id: str | None = None, timeout_s: float | None = None, **knobs: Unpack[Knobs]
) -> UnaryCall[generation_pb2.CompleteResponse]:
    """Generate, and return everything at once. Arguments as for `generate`."""
    request = generation_pb2.CompleteRequest(spec=build_spec(prompt, knobs), request_id=request_id or _new_id())
    parse = generation_pb2.CompleteResponse.FromString
    stays = _may_come_back(request.spec, request_id)
    farewell = None if stays else functools.partial(_cancel_started, request.spec, request.request_id)
    return UnaryCall(_GENERATION + "Complete", request, parse, timeout_s, farewell)


def submit(
    prompt: Input, *, request_id: str | None = None, timeout_s: float | None = None, **knobs: Unpack[Knobs]
) -> UnaryCall[common_pb2.Accepted]:
    """Start a generation and return its id at once; `attach` or `get` reads it. Arguments as for `generate`."""
    request = generation_pb2.SubmitGenerationRequest(spec=build_spec(prompt, knobs), request_id=request_id or _new_id())
    parse = generation_pb2.SubmitGenerationResponse.FromString
    return UnaryCall(_GENERATION + "SubmitGeneration", request, lambda body: parse(body).accepted, timeout_s)


def get(generation_id: str, *, timeout_s: float | None = None) -> UnaryCall[generation_pb2.GetGenerationResponse]:
    """The state of a generation and its tokens so far."""
    request = generation_pb2.GetGenerationRequest(generation_id=generation_id)
    parse = generation_pb2.GetGenerationResponse.FromString
    return UnaryCall(_GENERATION + "GetGeneration", request, parse, timeout_s)


def cancel(generation_id: str, *, timeout_s: float | None = None) -> UnaryCall[generation_pb2.CancelGenerationResponse]:
    """End a generation; the answer says how it really ends."""
    request = generation_pb2.CancelGenerationRequest(generation_id=generation_id)
    parse = generation_pb2.CancelGenerationResponse.FromString
    return UnaryCall(_GENERATION + "CancelGeneration", request, parse, timeout_s)


def models(*, timeout_s: float | None = None) -> UnaryCall[Sequence[model_pb2.Model]]:
    """The models that live workers serve, by name; the first 1,000."""
    request = model_pb2.ListModelsRequest(page_size=MOST_MODELS)
    parse = model_pb2.ListModelsResponse.FromString
    return UnaryCall(_MODEL + "ListModels", request, lambda body: parse(body).models, timeout_s)


def model(name: str = "", *, timeout_s: float | None = None) -> UnaryCall[model_pb2.Model]:
    """One model; its name may be left out where one is served."""
    request = model_pb2.GetModelRequest(name=name)
    parse = model_pb2.GetModelResponse.FromString
    return UnaryCall(_MODEL + "GetModel", request, lambda body: parse(body).model, timeout_s)


def tokenize(
    text: str | Sequence[common_pb2.ChatMessage],
    *,
    model: str = "",
    add_bos: bool = True,
    timeout_s: float | None = None,
) -> UnaryCall[Sequence[model_pb2.TokenSpan]]:
    """The tokens of a text or a conversation, each with the bytes of the text that it stands for.

    Args:
        add_bos: put BOS before plain text, as generating does.
    """
    request = model_pb2.TokenizeRequest(model=model)
    if isinstance(text, str):
        request.text = text
        request.add_bos = add_bos
    else:
        request.chat.messages.extend(text)
    parse = model_pb2.TokenizeResponse.FromString
    return UnaryCall(_MODEL + "Tokenize", request, lambda body: parse(body).tokens, timeout_s)


def detokenize(ids: Sequence[int], *, model: str = "", timeout_s: float | None = None) -> UnaryCall[str]:
    """The text of token ids; bytes that form no character appear as U+FFFD."""
    request = model_pb2.DetokenizeRequest(model=model, ids=ids)
    parse = model_pb2.DetokenizeResponse.FromString
    return UnaryCall(_MODEL + "Detokenize", request, lambda body: parse(body).text, timeout_s)


def count_tokens(prompt: Input, *, timeout_s: float | None = None, **knobs: Unpack[Knobs]) -> UnaryCall[int]:
    """How many tokens the prompt has, counted as `generate` would."""
    request = model_pb2.CountTokensRequest(spec=build_spec(prompt, knobs))
    parse = model_pb2.CountTokensResponse.FromString
    return UnaryCall(_MODEL + "CountTokens", request, lambda body: parse(body).prompt_tokens, timeout_s)


def cancel_read(reading: Reading) -> Farewell:
    """Cancels the generation."""
    if reading.generation_id:
        yield cancel(reading.generation_id, timeout_s=FAREWELL_TIMEOUT_S)
    else:
        assert reading.request is not None
        yield from _cancel_started(reading.request.spec, reading.request.request_id)


def leave_alone(_: Reading) -> Farewell:
    """Nothing: others may read it."""
    yield from ()


def ends_what_it_started(error: BaseException, *, may_come_back: bool = False) -> bool:
    """Whether a call that ends so ends its generation too: its caller has gone, or its time is over."""
    if isinstance(error, HerdError):
        is_time_over = isinstance(error, DeadlineExceeded) and not isinstance(error, DeadlineTooShort)
        return is_time_over and not may_come_back
    return True


def _cancel_started(spec: common_pb2.GenerationSpec, request_id: str) -> Farewell:
    """Its `accepted` was not awaited: it is found by its request_id."""
    accepted = yield submit(spec, request_id=request_id, timeout_s=FAREWELL_TIMEOUT_S)
    yield cancel(accepted.generation_id, timeout_s=FAREWELL_TIMEOUT_S)


def _may_come_back(spec: common_pb2.GenerationSpec, request_id: str | None) -> bool:
    return request_id is not None or spec.HasField("resume_window_ms")


def serialize(message: Message) -> bytes:
    """A message as gRPC sends it."""
    return message.SerializeToString()


def _new_id() -> str:
    return str(uuid.uuid4())
