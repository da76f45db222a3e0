"""`herd generate`: one streamed answer in the terminal, under one trace."""

import json
import sys
from dataclasses import dataclass, replace

from google.protobuf import json_format
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from herd.complain import complain
from herd.private import NoHerd, private_herd
from herd.reach import Reach
from herd.show_error import show_error
from llamaherd.client import HerdError
from llamaherd.v1 import common_pb2, generation_pb2
from telemetry import names
from telemetry.setup import start_tracing

PATIENCE_S = 5.0  # a person waits at the other end: enough for a gateway that restarts


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """What `herd generate` was asked for; the command line documents each."""

    prompt: str  # "-": all of standard input
    reach: Reach
    start: bool
    model: str
    system: str  # none if empty
    raw: bool
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    max_new_tokens: int | None
    stop: tuple[str, ...]
    timeout_s: float
    request_id: str | None
    as_json: bool
    trace: bool


def run_generate(options: GenerateOptions) -> int:
    """Stream the answer to standard output; the exit status (1: the service answered with an error)."""
    stop_tracing = start_tracing("llamaherd-client")
    try:
        if options.prompt == "-":
            options = replace(options, prompt=sys.stdin.buffer.read().decode())
        if not options.prompt:
            complain("generate", "the prompt is empty")
            return 2
        if options.start:
            with private_herd() as address:
                return _stream(options, Reach((address,)))
        return _stream(options, options.reach)
    except BrokenPipeError:
        raise  # of whoever reads our output, and has had enough
    except (UnicodeDecodeError, UnicodeEncodeError) as error:  # of standard input, or of an argument
        complain("generate", f"what is asked must be UTF-8: {error.reason}")
        return 2
    except (NoHerd, OSError) as error:
        complain("generate", error)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        stop_tracing()


def build_spec(options: GenerateOptions) -> common_pb2.GenerationSpec:
    """The generation these options mean; what was not given stays absent."""
    spec = common_pb2.GenerationSpec(model=options.model)
    if options.raw:
        spec.prompt = options.prompt
    else:
        if options.system:
            spec.chat.messages.add(role=common_pb2.ROLE_SYSTEM, content=options.system)
        spec.chat.messages.add(role=common_pb2.ROLE_USER, content=options.prompt)
    for name in ("temperature", "top_p", "top_k", "seed"):
        if (value := getattr(options, name)) is not None:
            setattr(spec.sampling, name, value)
    if options.max_new_tokens is not None:
        spec.stopping.max_new_tokens = options.max_new_tokens
    spec.stopping.stop_strings.extend(options.stop)
    return spec


def _stream(options: GenerateOptions, reach: Reach) -> int:
    tracer = trace.get_tracer("llamaherd")
    with (
        tracer.start_as_current_span(names.SPAN_CLIENT, kind=SpanKind.CLIENT) as span,
        reach.client(timeout_s=options.timeout_s, patience_s=PATIENCE_S) as client,
    ):
        stream = client.generate(build_spec(options), request_id=options.request_id)
        code = 0
        try:
            for message in stream.messages():
                _show(message, options.as_json)
        except HerdError as error:
            span.set_status(Status(StatusCode.ERROR, error.code.name))
            if stream.position and not options.as_json:
                print(flush=True)  # ends the line of what came
            show_error(error, begins_line=True)
            code = 1
        else:
            if not options.as_json:
                print(flush=True)
        if options.trace:
            print(f"trace id: {span.get_span_context().trace_id:032x}", file=sys.stderr)
        return code


def _show(response: generation_pb2.GenerateResponse, as_json: bool) -> None:
    """Print what a message brings, at once: a reader may be a person or a pipe."""
    if as_json:
        print(json.dumps(json_format.MessageToDict(response, preserving_proto_field_name=True)), flush=True)
        return
    text = "".join(token.text for token in response.tokens) + response.choice_finished.text
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()
