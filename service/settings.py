"""The gateway's settings: every field is read from HERD_GATEWAY_<FIELD>."""

import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class GatewaySettings(BaseSettings):
    """One gateway process."""

    model_config = SettingsConfigDict(env_prefix="HERD_GATEWAY_", frozen=True)

    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0", description="redis://, rediss:// or unix:///path, of Redis 7.0 or Valkey"
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(default=50051, ge=0, le=65535, description="0 takes a free one, which is logged")
    tls_cert: Path | None = Field(default=None, description="PEM file with the certificate chain")
    tls_key: Path | None = Field(default=None, description="PEM file with its private key")
    insecure: bool = Field(default=False, description="listen without TLS on an address that others reach")

    id_key: str = Field(
        default="llamaherd.dev/generation-id",
        min_length=1,
        description="key of the hash from (caller, request_id) to generation id; the same at every gateway of a herd",
    )
    max_waiting: int = Field(default=1024, ge=1, description="generations of one model and class that may wait")
    max_waiting_tokens: int = Field(
        default=1 << 22, ge=1, description="tokens of their prompts and outputs that may wait; one alone may have more"
    )
    max_caller_generations: int = Field(
        default=16384,
        ge=1,
        description="generations of one caller that have not ended; without keys all callers are one",
    )
    max_gateway_waiting: int = Field(default=2048, ge=1, description="generations that may wait at this process")
    max_gateway_waiting_tokens: int = Field(
        default=1 << 23, ge=1, description="tokens of their prompts and outputs that may wait at this process"
    )
    max_streams: int = Field(
        default=4096,
        ge=1,
        description="generations this process may have readers of, and open chat streams, each with its turn; 64 RPCs "
        "more may be open on one connection, and twice as many as on one in all",
    )
    max_connections: int = Field(default=8192, ge=1, description="connections; more are closed at once")
    max_connection_idle_s: float = Field(
        default=600.0, gt=0, le=1_000_000, description="how long a connection may be open without any RPC"
    )
    max_connection_age_s: float = Field(
        default=86400.0, gt=0, le=1_000_000, description="a connection so old takes no more RPCs; clients open another"
    )
    connection_grace_s: float = Field(
        default=3600.0, gt=0, le=1_000_000, description="how long its RPCs may then go on; clients resume what is cut"
    )
    max_log_bytes: int = Field(
        default=16 << 20,
        ge=1 << 16,
        description="largest token log of one generation, all choices and logprobs together",
    )
    resume_wait_s: float = Field(
        default=5.0, gt=0, description="how long a reader ahead of a running log waits for it to grow"
    )
    request_timeout_s: float = Field(
        default=30.0,
        gt=0,
        description="how long an RPC may be open before its request, or its chat's setup, has come, and a connection "
        "before it speaks HTTP/2",
    )
    write_timeout_s: float = Field(
        default=60.0, gt=0, description="how long a message may wait for a client that reads nothing; then its RPC ends"
    )
    drain_timeout_s: float = Field(default=30.0, ge=0, description="how long running streams may go on after SIGTERM")
    dead_after_ms: int = Field(
        default=900, ge=300, description="a worker's heartbeat that stands still this long is a death"
    )
    stale_after_s: float = Field(
        default=10.0,
        ge=3.0,
        description="a worker whose device finishes no step, and when idle no probe, for this long does not count for "
        "health; at least what the longest step takes",
    )
    metrics_host: str = Field(
        default="127.0.0.1", min_length=1, description="address where Prometheus may ask for /metrics; never TLS"
    )
    metrics_port: int = Field(default=0, ge=0, le=65535, description="its port; 0 opens none")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="lowest level logged")

    @model_validator(mode="after")
    def _tls_or_said_so(self) -> "GatewaySettings":
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together")
        if not (self.is_loopback or self.has_tls or self.insecure):
            raise ValueError(f"host {self.host} is reachable by others: give tls_cert and tls_key, or insecure=true")
        return self

    @property
    def has_tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.tls_cert is not None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the address. A name other than localhost counts as reachable."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def address(self) -> str:
        """host:port as gRPC takes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"
