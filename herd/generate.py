"""`herd generate`: one streamed answer in the terminal, under one trace."""

import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from contract.lifetime import spawn
from llamaherd.client import Client, HerdError
from llamaherd.v1 import common_pb2, generation_pb2
from telemetry import names
from telemetry.setup import start_tracing

PATIENCE_S = 5.0  # a person waits at the other end: enough for a gateway that restarts


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """What `herd generate` was asked for; the command line documents each."""

    prompt: str
    addresses: tuple[str, ...]
    start: bool
    model: str
    system: str | None
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


class NoHerd(RuntimeError):
    """The private `herd up` ended before it served."""


def run_generate(options: GenerateOptions) -> int:
    """Stream the answer to standard output; the exit status (1: the service answered with an error)."""
    stop_tracing = start_tracing("llamaherd-client")
    try:
        if options.start:
            with _private_herd() as address:
                return _stream(options, [address])
        return _stream(options, options.addresses)
    except NoHerd as error:
        print(f"herd generate: {error}", file=sys.stderr)
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
        if options.system is not None:
            spec.chat.messages.add(role=common_pb2.ROLE_SYSTEM, content=options.system)
        spec.chat.messages.add(role=common_pb2.ROLE_USER, content=options.prompt)
    for name in ("temperature", "top_p", "top_k", "seed"):
        if (value := getattr(options, name)) is not None:
            setattr(spec.sampling, name, value)
    if options.max_new_tokens is not None:
        spec.stopping.max_new_tokens = options.max_new_tokens
    spec.stopping.stop_strings.extend(options.stop)
    return spec


def _stream(options: GenerateOptions, addresses: Sequence[str]) -> int:
    tracer = trace.get_tracer("llamaherd")
    with (
        tracer.start_as_current_span(names.SPAN_CLIENT, kind=SpanKind.CLIENT) as span,
        Client(addresses, timeout_s=options.timeout_s, patience_s=PATIENCE_S) as client,
    ):
        stream = client.generate(build_spec(options), request_id=options.request_id)
        try:
            for message in stream.messages():
                _show(message, options.as_json)
            code = 0
        except HerdError as error:
            span.set_status(Status(StatusCode.ERROR, error.code.name))
            _show_error(error)
            code = 1
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


def _show_error(error: HerdError) -> None:
    """The status, its message and what else it says."""
    print(f"\n{error}", file=sys.stderr)
    for violation in error.violations:
        print(f"  {violation.field}: {violation.description}", file=sys.stderr)
    if error.retry_after_s is not None:
        print(f"  retry after {error.retry_after_s:g} s", file=sys.stderr)
    if error.reason:
        facts = "".join(f", {key} {value}" for key, value in sorted(error.metadata.items()))
        print(f"  reason {error.reason}{facts}", file=sys.stderr)


@contextmanager
def _private_herd() -> Iterator[str]:
    """The address of a `herd up` that lives as long as this block."""
    with tempfile.TemporaryDirectory(prefix="herd-") as folder:
        ready_file = Path(folder) / "ready.json"
        command = [sys.executable, "-m", "herd", "up", "--port", "0", "--ready-file", str(ready_file)]
        herd = spawn(command)
        try:
            while not ready_file.exists():
                if herd.poll() is not None:
                    raise NoHerd(f"`herd up` ended with code {herd.returncode}")
                time.sleep(0.05)
            yield json.loads(ready_file.read_text())["address"]
        finally:
            herd.send_signal(signal.SIGTERM)
            herd.wait()
