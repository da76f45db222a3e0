"""How a client reaches its gateways: addresses, TLS, key, and the settings of each connection."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

DEFAULT_ADDRESS = "127.0.0.1:50051"

# A gateway that is frozen still has its connection; only an unanswered ping tells, within the sum of these two.
KEEPALIVE_TIME_MS = 5_000  # a gateway allows a ping every 4 s and ends the connection of who asks more often
KEEPALIVE_TIMEOUT_MS = 5_000

CHANNEL_OPTIONS: Sequence[tuple[str, int | str]] = (
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),  # what really decides (grpcio 1.85); a minute by default
    ("grpc.http2.max_pings_without_data", 0),  # a reader sends nothing: by default its third ping would be its last
    ("grpc.enable_retries", 0),  # one place decides about retries, `tries.py`
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 3_000),  # also how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.dns_min_time_between_resolutions_ms", 2_000),
    ("grpc.use_local_subchannel_pool", 1),  # a client's connections end with it
    ("grpc.max_receive_message_length", -1),  # bounded by the context; with log-probabilities it may pass 4 MiB
    # A name that stands for several gateways is used by turns, and around one that has gone.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
)

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Tls:
    """How to know the gateway, and with a certificate of one's own, to be known by it. All PEM.

    Attributes:
        root_certificates: who may sign the gateway's certificate; None takes the system's.
        private_key: of `certificate_chain`.
        server_name: the name in the gateway's certificate, if it is not the one in the address.
    """

    root_certificates: bytes | None = None
    private_key: bytes | None = field(default=None, repr=False)
    certificate_chain: bytes | None = None
    server_name: str | None = None


@dataclass(frozen=True, slots=True)
class Connections:
    """The gateways' addresses and how to speak to any of them."""

    addresses: tuple[str, ...]
    credentials: grpc.ChannelCredentials | None
    options: tuple[tuple[str, int | str], ...]
    metadata: Metadata


def connections(
    addresses: str | Sequence[str],
    tls: Tls | bool,
    api_key: str | None,
    metadata: Sequence[tuple[str, str]],
    channel_options: Sequence[tuple[str, int | str]],
) -> Connections:
    """What a client's arguments mean. Raises ValueError without an address."""
    addresses = (addresses,) if isinstance(addresses, str) else tuple(addresses)
    if not addresses:
        raise ValueError("a client needs the address of a gateway")
    options = dict(CHANNEL_OPTIONS)
    options.update(channel_options)
    credentials = None
    if tls is not False:
        tls = Tls() if tls is True else tls
        credentials = grpc.ssl_channel_credentials(tls.root_certificates, tls.private_key, tls.certificate_chain)
        if tls.server_name is not None:
            options["grpc.ssl_target_name_override"] = tls.server_name
    key = (("authorization", f"Bearer {api_key}"),) if api_key is not None else ()
    return Connections(addresses, credentials, tuple(options.items()), (*key, *metadata))
