"""What several commands take, and what is wrong with a value before anybody is asked: a usage error, exit status 2."""

import re
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_REDIS = "redis://127.0.0.1:6379/0"
MAX_PORT = 65535
MAX_TIMEOUT_S = 2**32 // 1000  # 49 days, the longest time that the API knows (max_time_ms)
MAX_REQUEST_ID_CHARS = 128

# gRPC's own ways to name a server. Anything else is host:port, where it takes 99999 for port 34463, and none for 443.
_SCHEMES = re.compile(r"(dns|unix|unix-abstract|ipv4|ipv6|vsock|xds):.+")
_HOST_AND_PORT = re.compile(r"(?:\[[^][/\s]+\]|[^][/\s:]+):(\d{1,5})", re.ASCII)


def _checked_address(address: str) -> str:
    named = _HOST_AND_PORT.fullmatch(address)
    if not (1 <= int(named[1]) <= MAX_PORT if named else _SCHEMES.fullmatch(address)):
        raise typer.BadParameter(f"{address!r} is no host:port of a gateway, such as {DEFAULT_ADDRESS}")
    return address


def _checked_addresses(addresses: list[str] | None) -> list[str] | None:
    return addresses and [_checked_address(address) for address in addresses]


def _checked_timeout(timeout_s: float) -> float:
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise typer.BadParameter(f"{timeout_s:g} s is no time to wait: over 0, at most {MAX_TIMEOUT_S}")
    return timeout_s


def _checked_top_p(top_p: float | None) -> float | None:
    if top_p is not None and not 0 < top_p <= 1:
        raise typer.BadParameter(f"{top_p:g} is not over 0 and at most 1")
    return top_p


def _checked_temperature(temperature: float | None) -> float | None:
    if temperature is not None and not 0 <= temperature <= 100:
        raise typer.BadParameter(f"{temperature:g} is not from 0 to 100")
    return temperature


def _checked_request_id(request_id: str | None) -> str | None:
    if request_id is not None and not 1 <= len(request_id) <= MAX_REQUEST_ID_CHARS:
        raise typer.BadParameter(f"it has {len(request_id)} characters; 1 to {MAX_REQUEST_ID_CHARS}")
    return request_id


def _checked_host(host: str) -> str:
    if not host.strip():
        raise typer.BadParameter("it is empty; 127.0.0.1 is this machine alone, 0.0.0.0 whoever reaches it")
    return host


def _checked_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise typer.BadParameter(f"{name!r} is none of auto, cpu, cuda and cuda:N")
    return name


Address = Annotated[str, typer.Option(help="host:port of a gateway", envvar="HERD_ADDRESS", callback=_checked_address)]
Addresses = Annotated[
    list[str] | None,
    typer.Option(
        "--address",
        help="host:port of a gateway; with several an answer, or a conversation, survives the loss of one",
        envvar="HERD_ADDRESS",
        callback=_checked_addresses,
    ),
]
Tls = Annotated[
    bool, typer.Option("--tls", help="the gateway has a certificate that the system trusts", envvar="HERD_TLS")
]
Ca = Annotated[
    Path | None,
    typer.Option(
        help="TLS, and this PEM file says which certificates to trust",
        envvar="HERD_CA",
        exists=True,
        dir_okay=False,
        readable=True,
    ),
]

# What a field of the API can hold; what a model takes of it, the gateway knows.
Temperature = Annotated[
    float | None, typer.Option(help="0 is greedy, 100 the most; default: the model's", callback=_checked_temperature)
]
TopP = Annotated[float | None, typer.Option(help="over 0, at most 1; default: the model's", callback=_checked_top_p)]
TopK = Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="0 keeps all; default: the model's")]
Seed = Annotated[int | None, typer.Option(min=0, max=2**64 - 1, help="default: a random one for each answer")]
MaxNewTokens = Annotated[int | None, typer.Option(min=1, max=2**32 - 1, help="of one answer; default: the model's")]
Timeout = Annotated[
    float, typer.Option("--timeout", help="seconds that one answer may take", callback=_checked_timeout)
]
RequestId = Annotated[str | None, typer.Option(help="makes the call idempotent", callback=_checked_request_id)]

RedisUrl = Annotated[
    str, typer.Option(help="the herd's Redis, as its gateways are told", envvar="HERD_GATEWAY_REDIS_URL")
]

Host = Annotated[str, typer.Option(help="where to listen", callback=_checked_host)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N", callback=_checked_device)]
