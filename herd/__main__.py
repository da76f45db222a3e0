"""`herd`: one command for each piece of a herd.

A command imports what it needs when it is called: an image has what its own process needs, and no more.
"""

import enum
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from herd.arguments import (
    DEFAULT_ADDRESS,
    DEFAULT_REDIS,
    Address,
    Addresses,
    Ca,
    Device,
    Host,
    MaxNewTokens,
    RedisUrl,
    RequestId,
    Seed,
    Temperature,
    Timeout,
    Tls,
    TopK,
    TopP,
)

if TYPE_CHECKING:
    from llamaherd.client import ChatKnobs

OURS = ("service", "worker", "contract", "telemetry", "herd", "llamaherd")
EPILOG = "Exit status: 0 all went well, 1 the service or a process did not, 2 the command line is wrong, 130 Ctrl-C."


app = typer.Typer(
    name="herd",
    help="Serve a bitsandbytes-quantized Llama 2 over gRPC, and talk to it.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


class Weights(enum.StrEnum):
    """How a worker may hold them."""

    AUTO = "auto"
    INT8 = "int8"
    NF4 = "nf4"
    NF4_DQ = "nf4-dq"
    NONE = "none"


class ChatFormat(enum.StrEnum):
    """How a worker may make prompts of conversations."""

    AUTO = "auto"
    LLAMA2 = "llama2"
    NONE = "none"


def _tell_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("llamaherd-server"))
        raise typer.Exit


@app.callback()
def herd(
    _: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    """Serve a bitsandbytes-quantized Llama 2 over gRPC, and talk to it."""


@app.command()
def up(
    model: Annotated[
        list[Path] | None,
        typer.Option(help="a Hugging Face model folder, may be given several times; default: the demo model"),
    ] = None,
    model_name: Annotated[
        list[str] | None, typer.Option(help="the name callers use, one for each --model; default: the folder's")
    ] = None,
    quantization: Annotated[
        Weights, typer.Option(help="auto: as the folder was saved, int8 for an unquantized one")
    ] = Weights.AUTO,
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="worker processes of each model; one GPU each where there are GPUs")
    ] = 1,
    gateways: Annotated[
        int, typer.Option(min=1, max=64, help="gateway processes on the one port; a busy one takes a core")
    ] = 1,
    device: Device = "auto",
    chat_format: Annotated[
        ChatFormat, typer.Option(help="auto: by the folder's template (older chat folders have none: llama2)")
    ] = ChatFormat.AUTO,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 50051,
    insecure: Annotated[bool, typer.Option(help="allow a host beyond loopback without TLS")] = False,
    metrics_port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65000,
            help="the gateway tells Prometheus there, more gateways and the workers on the ports after it",
        ),
    ] = 0,
    redis_url: Annotated[str | None, typer.Option(help="a Redis of yours; default: a private valkey")] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(help="keep the private valkey's data here; default: a temporary folder", file_okay=False),
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="write the address here, as JSON, once all serve", dir_okay=False)
    ] = None,
    verbose: Annotated[bool, typer.Option(help="show the processes' logs")] = False,
) -> None:
    """Run everything on this machine: a private valkey, gateways and workers."""
    from herd.up import UpOptions, run_up

    options = UpOptions(
        models=tuple(model or ()),
        model_names=tuple(model_name or ()),
        quantization=quantization,
        workers=workers,
        gateways=gateways,
        device=device,
        chat_format=chat_format,
        host=host,
        port=port,
        insecure=insecure,
        metrics_port=metrics_port,
        redis_url=redis_url,
        state_dir=state_dir,
        ready_file=ready_file,
        verbose=verbose,
    )
    raise SystemExit(run_up(options))


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="what the user says; with --raw plain text; - reads standard input")],
    address: Addresses = None,
    tls: Tls = False,
    ca: Ca = None,
    start: Annotated[bool, typer.Option("--up", help="start a private `herd up` for the occasion")] = False,
    model: Annotated[str, typer.Option(help="the model's name; may be left out when one is served")] = "",
    system: Annotated[str, typer.Option(help="a system prompt")] = "",
    raw: Annotated[bool, typer.Option(help="continue the text as it is, without the chat format")] = False,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    max_new_tokens: MaxNewTokens = None,
    stop: Annotated[list[str] | None, typer.Option(help="a stop string; may be given several times")] = None,
    timeout_s: Timeout = 600.0,
    request_id: RequestId = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object for each message")] = False,
    trace: Annotated[bool, typer.Option(help="print the trace id at the end")] = False,
) -> None:
    """Stream an answer to the terminal."""
    from herd.generate import GenerateOptions, run_generate
    from herd.reach import Reach

    options = GenerateOptions(
        prompt=prompt,
        reach=Reach(tuple(address or [DEFAULT_ADDRESS]), tls, ca),
        start=start,
        model=model,
        system=system,
        raw=raw,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        max_new_tokens=max_new_tokens,
        stop=tuple(stop or ()),
        timeout_s=timeout_s,
        request_id=request_id,
        as_json=as_json,
        trace=trace,
    )
    raise SystemExit(run_generate(options))


@app.command()
def chat(
    address: Addresses = None,
    tls: Tls = False,
    ca: Ca = None,
    start: Annotated[bool, typer.Option("--up", help="start a private `herd up` for the occasion")] = False,
    model: Annotated[str, typer.Option(help="the model's name; may be left out when one is served")] = "",
    system: Annotated[str, typer.Option(help="a system prompt")] = "",
    handle: Annotated[str, typer.Option(help="go on with a conversation; /handle tells it")] = "",
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    max_new_tokens: MaxNewTokens = None,
    stats: Annotated[bool, typer.Option(help="tokens and times after each answer")] = False,
    timeout_s: Timeout = 600.0,
) -> None:
    """Talk with a model; without a terminal, each line of standard input is a turn."""
    from herd.chat import ChatOptions, run_chat
    from herd.reach import Reach

    knobs: ChatKnobs = {"model": model}
    if temperature is not None:
        knobs["temperature"] = temperature
    if top_p is not None:
        knobs["top_p"] = top_p
    if top_k is not None:
        knobs["top_k"] = top_k
    if seed is not None:
        knobs["seed"] = seed
    if max_new_tokens is not None:
        knobs["max_new_tokens"] = max_new_tokens
    options = ChatOptions(
        reach=Reach(tuple(address or [DEFAULT_ADDRESS]), tls, ca),
        start=start,
        system=system,
        handle=handle,
        stats=stats,
        timeout_s=timeout_s,
        knobs=knobs,
    )
    raise SystemExit(run_chat(options))


@app.command()
def models(
    address: Address = DEFAULT_ADDRESS,
    tls: Tls = False,
    ca: Ca = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object of ListModels' form")] = False,
    watch: Annotated[bool, typer.Option(help="go on looking; with --json, one object whenever it changes")] = False,
) -> None:
    """Show what is served."""
    from herd.models import ModelsOptions, run_models
    from herd.reach import Reach

    raise SystemExit(run_models(ModelsOptions(Reach((address,), tls, ca), as_json, watch)))


@app.command()
def status(
    redis_url: RedisUrl = DEFAULT_REDIS,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object, once")] = False,
    once: Annotated[bool, typer.Option(help="look once; so it is where the output is no terminal")] = False,
) -> None:
    """Show the pool, live: gateways, workers, queues, and what was set aside."""
    from herd.status import StatusOptions, run_status

    raise SystemExit(run_status(StatusOptions(redis_url, as_json, once)))


dead = typer.Typer(help="Jobs that were set aside: they kept killing workers, or cannot be read.", no_args_is_help=True)
app.add_typer(dead, name="dead")

Generations = Annotated[list[str] | None, typer.Argument(help="as `herd dead list` names them")]
AllOfThem = Annotated[bool, typer.Option("--all", help="all of them")]


@dead.command("list")
def list_dead(
    redis_url: RedisUrl = DEFAULT_REDIS,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON array")] = False,
) -> None:
    """Show them, never what they asked."""
    from herd.dead import DeadOptions, run_list

    raise SystemExit(run_list(DeadOptions(redis_url), as_json=as_json))


@dead.command("retry")
def retry_dead(generations: Generations = None, every: AllOfThem = False, redis_url: RedisUrl = DEFAULT_REDIS) -> None:
    """Queue them anew, each under a new id, for ten minutes after they were set aside: the cause should be mended."""
    from herd.dead import DeadOptions, run_retry

    raise SystemExit(run_retry(DeadOptions(redis_url, _these(generations, every), every)))


@dead.command("drop")
def drop_dead(generations: Generations = None, every: AllOfThem = False, redis_url: RedisUrl = DEFAULT_REDIS) -> None:
    """Take them off the list, and out of the count that the alerts look at."""
    from herd.dead import DeadOptions, run_drop

    raise SystemExit(run_drop(DeadOptions(redis_url, _these(generations, every), every)))


def _these(generations: list[str] | None, every: bool) -> tuple[str, ...]:
    if bool(generations) == every:
        raise typer.BadParameter("name generations, or give --all")
    return tuple(generations or ())


@app.command()
def quantize(
    source: Annotated[Path, typer.Argument(help="an unquantized Hugging Face model folder")],
    to: Annotated[str, typer.Option(help="int8, nf4 or nf4-dq")],
    out: Annotated[Path, typer.Option(help="the folder to write; must not exist or be empty")],
    device: Annotated[str, typer.Option(help="auto, cpu or cuda: where to quantize")] = "auto",
) -> None:
    """Quantize a model folder by bitsandbytes, in the form transformers saves and loads."""
    from herd.quantize import run_quantize

    raise SystemExit(run_quantize(source, to, out, device))


@app.command()
def gateway() -> None:
    """Run one gateway; settings by HERD_GATEWAY_* variables."""
    os.execv(sys.executable, [sys.executable, "-m", "service"])


@app.command()
def worker() -> None:
    """Run one worker; settings by HERD_WORKER_* variables."""
    os.execv(sys.executable, [sys.executable, "-m", "worker"])


def main() -> None:
    """The console script."""
    try:
        app()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in OURS:
            raise
        print(f"herd: this command needs {package}, which is not in this image or environment", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
