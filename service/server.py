"""The gRPC server, and the bounds that gRPC keeps by itself, before a handler of ours is called.

A well-behaved client meets `max_streams` first, which tells it when to come back. What lies beyond is for the others:
gRPC refuses an RPC that is one too many as RESOURCE_EXHAUSTED, and tells nothing more.
"""

import grpc

from service.prompts import MAX_REQUEST_BYTES
from service.request_wait import RequestWait
from service.settings import GatewaySettings

MAX_RECEIVE_BYTES = MAX_REQUEST_BYTES + 64 * 1024  # so that a request a little too large gets an answer of ours
SPARE_RPCS = 64  # beside streams: unary calls, health watchers, calls that are about to be refused


def new_server(settings: GatewaySettings) -> grpc.aio.Server:
    """A server without services."""
    return grpc.aio.server(
        interceptors=[RequestWait(settings.request_timeout_s)],
        options=options_of(settings),
        maximum_concurrent_rpcs=2 * max_connection_rpcs(settings),
    )


def max_connection_rpcs(settings: GatewaySettings) -> int:
    """RPCs of one connection; that is half of what may be open in all, so that no single one can take everything."""
    return settings.max_streams + SPARE_RPCS


def options_of(settings: GatewaySettings) -> tuple[tuple[str, int], ...]:
    """Channel arguments."""
    return (
        ("grpc.so_reuseport", 1),  # several gateways may share a port, and `herd up` reserves it so
        ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
        ("grpc.max_send_message_length", -1),  # whole generations are bounded; Tokenize says how long its answers are
        ("grpc.keepalive_time_ms", 20_000),  # a client whose host has gone is noticed within half a minute
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),  # what really ends the connection (grpcio 1.85); a minute by default
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 4_000),  # clients may ping as often: ours do every 5 s
        ("grpc.max_concurrent_streams", max_connection_rpcs(settings)),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.server_handshake_timeout_ms", _ms(settings.request_timeout_s)),
        ("grpc.max_connection_idle_ms", _ms(settings.max_connection_idle_s)),
        ("grpc.max_connection_age_ms", _ms(settings.max_connection_age_s)),
        ("grpc.max_connection_age_grace_ms", _ms(settings.connection_grace_s)),
    )


def bind(server: grpc.aio.Server, settings: GatewaySettings) -> int:
    """The bound port."""
    if settings.tls_cert is None or settings.tls_key is None:
        return server.add_insecure_port(settings.address)
    pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
    return server.add_secure_port(settings.address, grpc.ssl_server_credentials([pair]))


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
