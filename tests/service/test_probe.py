"""The probe of containers' health checks finds the gateway by its settings, and trusts its certificate only."""

import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from service import probe
from service.health import model_service
from service.settings import GatewaySettings

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@contextmanager
def health_server(
    status: int,
    host: str = "127.0.0.1",
    pair: tuple[Path, Path] | None = None,
    services: Mapping[str, int] = MappingProxyType({}),
) -> Iterator[int]:
    """A server that answers health checks with `status`, or a service's own; its port. `pair` is key, certificate."""
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        servicer = health.HealthServicer()
        for service, its_status in {"": status, **services}.items():
            servicer.set(service, its_status)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        if pair is None:
            port = server.add_insecure_port(f"{host}:0")
        else:
            key, cert = (path.read_bytes() for path in pair)
            port = server.add_secure_port(f"{host}:0", grpc.ssl_server_credentials([(key, cert)]))
        server.start()
        try:
            yield port
        finally:
            server.stop(None).wait()


def signed(folder: Path, names: str) -> tuple[Path, Path]:
    """Key and certificate for `names`, signed by an authority that nobody knows."""
    folder.mkdir()
    authority, authority_key, cert, key = (str(folder / name) for name in ("ca.pem", "ca.key", "cert.pem", "key.pem"))
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    signer = ["-CA", authority, "-CAkey", authority_key]
    extension = ["-addext", f"subjectAltName={names}"] if names else []
    for command in (
        [*new, "-keyout", authority_key, "-out", authority, "-subj", "/CN=authority"],
        [*new, *signer, "-keyout", key, "-out", cert, "-subj", "/CN=gateway", *extension],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return Path(key), Path(cert)


@pytest.mark.parametrize(("status", "exit_status"), [(SERVING, 0), (NOT_SERVING, 1)])
def test_only_serving_is_health(
    status: int, exit_status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A gateway without a live worker answers, and is not healthy."""
    with health_server(status) as port:
        monkeypatch.setenv("HERD_GATEWAY_PORT", str(port))
        assert probe.main() == exit_status
    assert capsys.readouterr().out.strip() == health_pb2.HealthCheckResponse.ServingStatus.Name(status)


def test_it_asks_for_one_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """By the name that Health knows a model by; a model that nobody has announced is no health."""
    with health_server(NOT_SERVING, services={model_service("demo"): SERVING}) as port:
        monkeypatch.setenv("HERD_GATEWAY_PORT", str(port))
        assert probe.main(["demo"]) == 0
        assert probe.main(["other"]) == 1
        assert probe.main([]) == 1
    assert probe.main(["demo", "other"]) == 2
    told = capsys.readouterr()
    assert told.out.splitlines() == ["SERVING", "NOT_SERVING"]
    assert "NOT_FOUND" in told.err
    assert "usage" in told.err


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "localhost"])
def test_it_asks_where_the_gateway_listens(host: str) -> None:
    """Every address includes loopback."""
    with health_server(SERVING, host) as port:
        assert probe.ask(GatewaySettings(host=host, port=port, insecure=True)) == SERVING


def test_nobody_there_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With TLS and without: status 1 and the reason, no traceback."""
    with health_server(SERVING) as port:
        pass
    monkeypatch.setenv("HERD_GATEWAY_PORT", str(port))
    assert probe.main() == 1
    assert capsys.readouterr().err.startswith("UNAVAILABLE")

    key, cert = signed(tmp_path / "pair", "DNS:gateway.example.com")
    monkeypatch.setenv("HERD_GATEWAY_TLS_KEY", str(key))
    monkeypatch.setenv("HERD_GATEWAY_TLS_CERT", str(cert))
    assert probe.main() == 1
    assert "refused" in capsys.readouterr().err


@pytest.mark.parametrize("names", ["DNS:gateway.example.com,DNS:other", "DNS:*.example.com", "IP:192.0.2.7"])
def test_a_certificate_for_other_names_will_do(tmp_path: Path, names: str) -> None:
    """It is the gateway's own file: neither loopback's name nor a known authority is needed."""
    key, cert = signed(tmp_path / "pair", names)
    with health_server(SERVING, pair=(key, cert)) as port:
        assert probe.ask(GatewaySettings(port=port, tls_key=key, tls_cert=cert)) == SERVING


def test_another_certificate_is_no_health(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What answers on the port is not the gateway of these settings."""
    key, cert = signed(tmp_path / "ours", "DNS:gateway")
    with health_server(SERVING, pair=signed(tmp_path / "other", "DNS:gateway")) as port:
        for name, value in (("PORT", port), ("TLS_KEY", key), ("TLS_CERT", cert)):
            monkeypatch.setenv(f"HERD_GATEWAY_{name}", str(value))
        assert probe.main() == 1


def test_a_certificate_without_a_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No client of today takes such a one either."""
    key, cert = signed(tmp_path / "pair", "")
    with (
        health_server(SERVING, pair=(key, cert)) as port,
        pytest.raises(OSError, match="has no subjectAltName"),
    ):
        probe.ask(GatewaySettings(port=port, tls_key=key, tls_cert=cert))
