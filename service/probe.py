"""`python -m service.probe [MODEL]`: asks the gateway beside it by grpc.health.v1, for health checks of containers.

It finds the gateway by the same HERD_GATEWAY_* variables. Without MODEL: whether it serves any. Exit status 0: SERVING;
1: anything else, which it prints; 2: too many arguments.
"""

import ipaddress
import socket
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.health import model_service
from service.settings import GatewaySettings

TIMEOUT_S = 3.0
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)  # also beside others to the same address


def main(arguments: Sequence[str] = ()) -> int:
    """Ask once; the exit status."""
    if len(arguments) > 1:
        print("usage: python -m service.probe [MODEL]", file=sys.stderr)
        return 2
    try:
        status = ask(GatewaySettings(), model_service(arguments[0]) if arguments else "")
    except grpc.RpcError as error:
        print(error.code().name, error.details(), file=sys.stderr)
        return 1
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(status))
    return 0 if status == health_pb2.HealthCheckResponse.SERVING else 1


def ask(settings: GatewaySettings, service: str = "") -> int:
    """The status of `service`, or of the whole gateway, that runs with `settings` on this machine.

    With TLS, the gateway must hold the very certificate of `tls_cert`, whoever signed it.

    Raises grpc.RpcError if it does not answer, OSError (as ssl's errors are) if the TLS handshake fails.
    """
    address = f"[{host}]" if ":" in (host := _reachable(settings.host)) else host
    address = f"{address}:{settings.port}"
    if settings.tls_cert is None:
        channel = grpc.insecure_channel(address, _OWN_CONNECTION)
    else:
        name = _name_in_certificate(settings.tls_cert, host, settings.port)
        credentials = grpc.ssl_channel_credentials(settings.tls_cert.read_bytes())
        options = (*_OWN_CONNECTION, ("grpc.ssl_target_name_override", name))
        channel = grpc.secure_channel(address, credentials, options)
    with channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S)
    return int(answer.status)


def _reachable(host: str) -> str:
    """Where to connect to what listens on `host`: 0.0.0.0 and :: stand for every address, loopback among them."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if not address.is_unspecified:
        return host
    return "127.0.0.1" if address.version == 4 else "::1"


def _name_in_certificate(cert: Path, host: str, port: int) -> str:
    """A name that the gateway's certificate is for: gRPC always checks one, and loopback is rarely among them."""
    context = ssl.create_default_context(cafile=cert)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the certificate itself is trusted, not who signed it
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, port), TIMEOUT_S) as plain, context.wrap_socket(plain) as connection:
        certificate = connection.getpeercert() or {}
    names = cast("Sequence[tuple[str, str]]", certificate.get("subjectAltName", ()))  # kind and value
    if not names:
        raise ssl.SSLError(f"{cert} has no subjectAltName")
    return names[0][1].replace("*", "any")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
