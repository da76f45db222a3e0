"""The Envoy by which browsers reach gateways: its configuration, whose pages it lets in, what it says of no gateway."""

import re
import subprocess
from collections.abc import AsyncIterator, Mapping
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest
import yaml

from service import status
from tests.conformance.envoy import CONFIG, ENVOY, TLS_CONFIG, envoy
from tests.herd_process import ROOT

PATH = "/llamaherd.v1.ModelService/ListModels"
OURS, OTHERS = "http://localhost:3000", "https://pages.example"
EMPTY_MESSAGE = bytes(5)


@pytest.fixture(scope="module")
async def alone(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The address of an Envoy whose gateway is not there."""
    async with envoy({"alone": ["127.0.0.1:1"]}, tmp_path_factory.mktemp("envoy")) as addresses:
        yield addresses["alone"]


def ask(address: str, method: str, headers: Mapping[str, str], body: bytes = b"") -> HTTPResponse:
    """One request as a browser makes it."""
    connection = HTTPConnection(address, timeout=30)
    try:
        connection.request(method, PATH, body, dict(headers))
        return connection.getresponse()
    finally:
        connection.close()


def test_envoy_takes_it() -> None:
    """As it stands. (The one with TLS is run by test_typescript.py: it wants its certificate.)"""
    done = subprocess.run((ENVOY, "--mode", "validate", "--config-path", str(CONFIG)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_tls_changes_nothing_else() -> None:
    """But for transport sockets, one file is the other."""
    plain, secured = (yaml.safe_load(path.read_text()) for path in (CONFIG, TLS_CONFIG))
    for listener in secured["static_resources"]["listeners"]:
        for chain in listener["filter_chains"]:
            del chain["transport_socket"]
    for cluster in secured["static_resources"]["clusters"]:
        del cluster["transport_socket"]

    assert secured == plain


def test_it_goes_to_the_gateways_of_compose() -> None:
    """To both, at the port where they listen."""
    services: Any = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    (cluster,) = yaml.safe_load(CONFIG.read_text())["static_resources"]["clusters"]
    (locality,) = cluster["load_assignment"]["endpoints"]
    sockets = [each["endpoint"]["address"]["socket_address"] for each in locality["lb_endpoints"]]

    assert [each["address"] for each in sockets] == [name for name in services if name.startswith("gateway")]
    assert all(services[each["address"]]["ports"][0].endswith(f":{each['port_value']}") for each in sockets)


def test_the_command_beside_a_herd_of_ones_own_listens_on_loopback_alone(tmp_path: Path) -> None:
    """What the file's first lines say."""
    command = re.search(r"^#   (sed .*) images/envoy.yaml >envoy.yaml &&", CONFIG.read_text(), re.MULTILINE)
    assert command is not None
    done = subprocess.run(f"{command[1]} {CONFIG}", shell=True, capture_output=True, text=True, check=True)
    hosts = re.findall(r"[{ ]address: ([\w.-]+)", done.stdout)

    assert set(hosts) == {"127.0.0.1"}


@pytest.mark.parametrize(("origin", "is_let_in"), [(OURS, True), (OTHERS, False), (f"{OURS}.pages.example", False)])
def test_whose_pages_may_call(alone: str, origin: str, is_let_in: bool) -> None:
    """A browser asks first, and goes by the answer."""
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,grpc-timeout"}
    answer = ask(alone, "OPTIONS", {"origin": origin, **asked})

    assert answer.getheader("access-control-allow-origin") == (origin if is_let_in else None)
    if is_let_in:
        assert {"authorization", "grpc-timeout", "x-grpc-web"} <= set(
            str(answer.getheader("access-control-allow-headers")).split(",")
        )


def test_no_gateway_is_unavailable(alone: str) -> None:
    """A gRPC status in headers that the page may read; so may it read every trailer of ours."""
    headers = {"origin": OURS, "content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
    answer = ask(alone, "POST", headers, EMPTY_MESSAGE)
    readable = set(str(answer.getheader("access-control-expose-headers")).split(","))

    assert answer.getheader("grpc-status") == "14"
    assert readable == {"grpc-status", "grpc-message", "grpc-status-details-bin", status.PUSHBACK_KEY}
