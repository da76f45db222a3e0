"""Gateways as processes of their own on a herd's Redis, to be killed, frozen and drained; and a cable to be cut."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import redis.asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from contract import keys
from contract.lifetime import spawn
from tests.stop_listening import stop_listening
from tests.until import until


@dataclass(frozen=True, slots=True)
class GatewayProcess:
    """One gateway that serves."""

    pid: int
    address: str
    gateway_id: str

    def send(self, number: signal.Signals) -> None:
        """A signal."""
        os.kill(self.pid, number)


@asynccontextmanager
async def gateway_processes(
    redis_url: str,
    num_gateways: int,
    folder: Path,
    *,
    tls: tuple[Path, Path] | None = None,
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[list[GatewayProcess]]:
    """So many, all seeing a live worker; none is left afterwards. A drain gives its streams no time.

    Args:
        tls: files of a key and a certificate for `localhost`.
        settings: more of theirs, without HERD_GATEWAY_.
    """
    given = {"REDIS_URL": redis_url, "PORT": "0", "DRAIN_TIMEOUT_S": "0", **(settings or {})}
    if tls is not None:
        given |= {"TLS_KEY": str(tls[0]), "TLS_CERT": str(tls[1])}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HERD_")}
    env = inherited | {f"HERD_GATEWAY_{name}": value for name, value in given.items()}
    logs = [folder / f"gateway-{n}.log" for n in range(num_gateways)]
    children = []
    for log in logs:
        with log.open("wb") as sink:
            children.append(spawn([sys.executable, "-m", "service"], env=env, stdout=sink, stderr=sink))
    try:
        await until(lambda: all(map(_said, logs)), 60, "the gateways listen")
        said = [_said(log) for log in logs]
        gateways = [
            GatewayProcess(child.pid, f"127.0.0.1:{facts['port']}", facts["gateway_id"])
            for child, facts in zip(children, said, strict=True)
        ]
        for gateway in gateways:
            await _until_serving(gateway.address, tls[1] if tls else None)
        yield gateways
    finally:
        for child in children:
            child.send_signal(signal.SIGCONT)
            child.kill()
            child.wait()


async def reader_of(redis_url: str, generation_id: str, gateways: Sequence[GatewayProcess]) -> GatewayProcess:
    """The gateway that streams this generation."""
    client = redis.asyncio.Redis.from_url(redis_url)
    try:
        readers = await client.hget(keys.record(generation_id), "readers")
        assert isinstance(readers, bytes)
        return next(gateway for gateway in gateways if gateway.gateway_id in readers.decode().split(","))
    finally:
        await client.aclose()


class Cable:
    """Lies between a client and a gateway; `cut` breaks every connection at once, new ones are taken again."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Reset, as by a host that died."""
        for writer in self._writers:
            writer.transport.abort()

    async def join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        onward_reader, onward_writer = await asyncio.open_connection(self._host, self._port)
        both = {writer, onward_writer}
        self._writers |= both
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, onward_writer))
                group.create_task(_pump(onward_reader, writer))
        finally:
            for each in both:
                each.transport.abort()
            self._writers -= both


@asynccontextmanager
async def cable(address: str) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """An address that leads to `address`, and what cuts it."""
    host, _, port = address.rpartition(":")
    between = Cable(host, int(port))
    server = await asyncio.start_server(between.join, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", between.cut
    finally:
        await stop_listening(server)
        between.cut()
        await server.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
    except ConnectionError:
        pass
    writer.transport.abort()


def _said(log: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return next((line for line in lines if line["event"] == "gateway listens"), {})


def _channel(address: str, cert: Path | None) -> grpc.aio.Channel:
    if cert is None:
        return grpc.aio.insecure_channel(address)
    named = [("grpc.ssl_target_name_override", "localhost")]
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(cert.read_bytes()), named)


async def _until_serving(address: str, cert: Path | None) -> None:
    async with _channel(address, cert) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def is_serving() -> bool:
            answer = await stub.Check(health_pb2.HealthCheckRequest())
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        await until(is_serving, 60, f"{address} sees a worker")
