"""`herd models`: what a herd serves, as a table or as JSON; with --watch for as long as one looks."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from herd.complain import complain
from herd.reach import Reach
from herd.show_error import show_error
from llamaherd.client.errors import typed
from llamaherd.v1 import model_pb2, model_pb2_grpc

PAGE_SIZE = 1000
LOOK_S = 1.0
TIMEOUT_S = 10.0
WIDTH = 140  # where no terminal says how wide it is
HEALTH_SERVICE = "llamaherd.v1.GenerationService"

_WEIGHTS = {
    model_pb2.QUANTIZATION_NONE: "16 bit",
    model_pb2.QUANTIZATION_INT8: "int8",
    model_pb2.QUANTIZATION_NF4: "nf4",
    model_pb2.QUANTIZATION_NF4_DOUBLE_QUANT: "nf4-dq",
}
_CHAT = {
    model_pb2.CHAT_FORMAT_NONE: "none",
    model_pb2.CHAT_FORMAT_LLAMA2: "llama2",
    model_pb2.CHAT_FORMAT_TEMPLATE: "template",
}


@dataclass(frozen=True, slots=True)
class ModelsOptions:
    """What `herd models` was asked for; the command line documents each."""

    reach: Reach
    as_json: bool
    watch: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """One look: the models by name, and of each whether it is healthy."""

    models: tuple[model_pb2.Model, ...]
    is_healthy: tuple[bool, ...]


def run_models(options: ModelsOptions) -> int:
    """Show the models; the exit status: 1 if the service answered with an error. An interrupt ends watching, with 0."""
    try:
        channel = options.reach.channel()
    except OSError as error:
        complain("models", error)
        return 1
    with channel:
        try:
            if options.watch:
                _watch(channel, options)
            elif options.as_json:
                print(_as_json(look(channel)), flush=True)
            else:
                _console().print(_table(look(channel)))
        except grpc.RpcError as error:
            show_error(typed(error), begins_line=True)
            return 1
        except KeyboardInterrupt:
            return 0
    return 0


def look(channel: grpc.Channel) -> Seen:
    """Ask once. Raises grpc.RpcError."""
    models = tuple(_all_models(model_pb2_grpc.ModelServiceStub(channel)))
    health: Any = health_pb2_grpc.HealthStub(channel)
    return Seen(models, tuple(_is_healthy(health, model.name) for model in models))


def _watch(channel: grpc.Channel, options: ModelsOptions) -> None:
    """Look again and again until interrupted. A gateway that does not answer may come back."""
    if options.as_json:
        told = ""
        for seen in _looks(channel):
            now = _told(seen) if isinstance(seen, grpc.RpcError) else _as_json(seen)
            if now != told:
                print(now, file=sys.stderr if isinstance(seen, grpc.RpcError) else sys.stdout, flush=True)
            told = now
        return
    with Live(console=_console(), auto_refresh=False) as live:
        for seen in _looks(channel):
            shown = Text(_told(seen), style="red") if isinstance(seen, grpc.RpcError) else _table(seen)
            live.update(shown, refresh=True)


def _looks(channel: grpc.Channel) -> Iterator[Seen | grpc.RpcError]:
    """One look after the other, for ever; an error stands for a look that failed."""
    while True:
        try:
            yield look(channel)
        except grpc.RpcError as error:
            yield error
        time.sleep(LOOK_S)


def _all_models(stub: Any) -> Iterator[model_pb2.Model]:
    token = ""
    while True:
        request = model_pb2.ListModelsRequest(page_size=PAGE_SIZE, page_token=token)
        page = stub.ListModels(request, timeout=TIMEOUT_S)
        yield from page.models
        if not (token := page.next_page_token):
            return


def _is_healthy(health: Any, model: str) -> bool:
    request = health_pb2.HealthCheckRequest(service=f"{HEALTH_SERVICE}/{model}")
    try:
        answer = health.Check(request, timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return False  # it went since it was listed
        raise
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _as_json(seen: Seen) -> str:
    """One line, of the form of ListModelsResponse."""
    response = model_pb2.ListModelsResponse(models=seen.models)
    return json.dumps(json_format.MessageToDict(response, preserving_proto_field_name=True))


def _table(seen: Seen) -> RenderableType:
    if not seen.models:
        return Text("no model is served: no live worker")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("model", "health"):
        table.add_column(name, no_wrap=True)
    for name in ("workers", "context", "vocabulary"):
        table.add_column(name, justify="right")
    for name in ("weights", "chat", "defaults", "bundle"):
        table.add_column(name, no_wrap=True)
    for model, is_healthy in zip(seen.models, seen.is_healthy, strict=True):
        table.add_row(
            Text(model.name),
            Text("serving", style="green") if is_healthy else Text("not serving", style="red"),
            str(model.live_workers),
            f"{model.context_length:,}",
            f"{model.vocabulary_size:,}",
            _WEIGHTS.get(model.quantization, "?"),
            _CHAT.get(model.chat_format, "?"),
            _defaults(model),
            model.bundle_digest[:12],
        )
    return table


def _defaults(model: model_pb2.Model) -> str:
    """The defaults that matter most."""
    sampling, stopping = model.defaults.sampling, model.defaults.stopping
    drawn = f"temperature {sampling.temperature:g}, top_p {sampling.top_p:g}" if sampling.temperature else "greedy"
    return f"{drawn}, {stopping.max_new_tokens} tokens"


def _told(error: grpc.RpcError) -> str:
    return f"{error.code().name}: {error.details()}"


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=WIDTH, highlight=False)
