"""The Envoy that browsers need, by the project's own configurations, before whichever gateways a test has."""

import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import yaml

from contract.lifetime import spawn
from tests.herd_process import ROOT
from tests.until import until

ENVOY = str(Path(sys.executable).with_name("envoy"))
CONFIG, TLS_CONFIG = ROOT / "images/envoy.yaml", ROOT / "images/envoy.tls.yaml"
LOOPBACK = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}


@asynccontextmanager
async def envoy(
    pools: Mapping[str, Sequence[str]],
    folder: Path,
    *,
    tls: tuple[Path, Path] | None = None,
    ping_s: int | None = None,
) -> AsyncIterator[Mapping[str, str]]:
    """One process that listens once for each pool of gateways; its addresses, by the pools' names.

    Args:
        tls: files of a key and a certificate, which is the gateways' own.
        ping_s: how often it pings gateways, and how long it waits for each answer.
    """
    path, admin, log = folder / "envoy.json", folder / "admin", folder / "envoy.log"
    path.write_text(json.dumps(_config(pools, tls, ping_s)))
    command = (
        ENVOY,
        "-c",
        str(path),
        "--admin-address-path",
        str(admin),
        "--concurrency",
        "1",
        "--disable-hot-restart",
    )
    with log.open("wb") as sink:
        process = spawn((*command, "--log-level", "warning"), stdout=sink, stderr=sink)
    try:

        def is_ready() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                return _ask(admin.read_text(), "ready").strip() == "LIVE"
            except (FileNotFoundError, URLError):
                return False

        await until(is_ready, 60, "Envoy has asked every gateway for its health")
        listening = json.loads(_ask(admin.read_text(), "listeners?format=json"))["listener_statuses"]
        yield {
            each["name"]: "127.0.0.1:{port_value}".format(**each["local_address"]["socket_address"])
            for each in listening
        }
    finally:
        process.kill()
        process.wait()


def _config(pools: Mapping[str, Sequence[str]], tls: tuple[Path, Path] | None, ping_s: int | None) -> Any:
    """What the compose files' Envoy is told, but for addresses and paths; listener and cluster once for each pool."""
    text = (CONFIG if tls is None else TLS_CONFIG).read_text()
    if tls is not None:
        key, cert = tls
        text = text.replace("/run/secrets/tls-key", str(key)).replace("/run/secrets/tls-cert", str(cert))
    config = yaml.safe_load(text)
    config["admin"]["address"] = LOOPBACK
    resources = config["static_resources"]
    (listener,), (cluster,) = resources["listeners"], resources["clusters"]
    if ping_s is not None:
        (options,) = cluster["typed_extension_protocol_options"].values()
        pings = options["explicit_http_config"]["http2_protocol_options"]["connection_keepalive"]
        pings |= {"interval": f"{ping_s}s", "timeout": f"{ping_s}s"}
    resources["listeners"] = [_listener(listener, name) for name in pools]
    resources["clusters"] = [_cluster(cluster, name, addresses) for name, addresses in pools.items()]
    return config


def _listener(template: Any, name: str) -> Any:
    listener = deepcopy(template) | {"name": name, "address": LOOPBACK}
    (chain,) = listener["filter_chains"]
    (host,) = chain["filters"][0]["typed_config"]["route_config"]["virtual_hosts"]
    for route in host["routes"]:
        route["route"]["cluster"] = name
    return listener


def _cluster(template: Any, name: str, addresses: Sequence[str]) -> Any:
    cluster = deepcopy(template) | {"name": name}
    ends = [{"endpoint": {"address": {"socket_address": _socket(address)}}} for address in addresses]
    cluster["load_assignment"] = {"cluster_name": name, "endpoints": [{"lb_endpoints": ends}]}
    return cluster


def _socket(address: str) -> Mapping[str, str | int]:
    host, _, port = address.rpartition(":")
    return {"address": host, "port_value": int(port)}


def _ask(admin: str, path: str) -> str:
    with urlopen(f"http://{admin.strip()}/{path}", timeout=10) as answer:
        return str(answer.read(), "utf-8")
