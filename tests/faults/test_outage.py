"""Redis is away for as long as it takes to refuse hundreds of connections: nobody spins, and nothing is lost."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from llamaherd.client import AsyncClient
from llamaherd.v1 import common_pb2, generation_pb2, generation_pb2_grpc
from tests.faults.chaos.herd import Herd, reserved_ports
from tests.stop_listening import stop_listening
from tests.until import until

AWAY_S = 10.0
MOST_A_SECOND = 200  # of a gateway, a supervisor and an engine process together; a busy loop asks thousands of times


@pytest.fixture
async def herd() -> AsyncIterator[Herd]:
    """One gateway, one worker."""
    folder = Path(tempfile.mkdtemp(prefix="herd-"))
    with reserved_ports(1) as ports:
        herd = Herd(folder, num_workers=1, num_gateways=1, ports=ports)
        try:
            await until(herd.is_whole, 120)
            yield herd
        finally:
            await herd.close()
    shutil.rmtree(folder)


async def test_an_outage_is_waited_out_without_a_busy_loop(herd: Herd) -> None:
    """For ten seconds. The stream goes on where it was; new requests are UNAVAILABLE, with a time to retry."""
    spec = common_pb2.GenerationSpec(
        model="demo",
        prompt="Once upon a time",
        sampling=common_pb2.Sampling(temperature=20, top_k=1000, seed=7),
        stopping=common_pb2.Stopping(max_new_tokens=700, min_new_tokens=700),
    )
    async with AsyncClient(f"127.0.0.1:{herd.gateways[0].port}") as client:
        expected = (await client.complete(spec, timeout_s=120)).choices[0].text
        text, num_refused = "", 0
        async with client.generate(spec, timeout_s=240) as stream:
            async for delta in stream:
                text += delta.text
                if stream.position >= 20 and not num_refused:
                    num_refused = await be_away(herd, spec)
    assert 0 < num_refused <= MOST_A_SECOND * AWAY_S
    assert text == expected
    assert stream.attempts == 1
    assert all(process.is_running for process in herd.processes), "nobody died of it"


async def be_away(herd: Herd, spec: common_pb2.GenerationSpec) -> int:
    """Kill the server, let its socket refuse connections for AWAY_S, start it again; how many it refused."""
    herd.server.kill()
    herd.server.path.unlink(missing_ok=True)
    async with refusing(herd.server.path) as refused:
        begun_s = time.monotonic()
        stub = generation_pb2_grpc.GenerationServiceStub(herd.channels[0])
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Complete(generation_pb2.CompleteRequest(spec=spec), timeout=60)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "grpc-retry-pushback-ms" in dict(raised.value.trailing_metadata())
        await until(lambda: time.monotonic() >= begun_s + AWAY_S, 120)
        num_refused = sum(each_s < begun_s + AWAY_S for each_s in refused)
    herd.server.path.unlink(missing_ok=True)
    herd.server.start()
    return num_refused


@asynccontextmanager
async def refusing(path: Path) -> AsyncIterator[list[float]]:
    """A socket that hangs up on whoever connects; the times of it."""
    times: list[float] = []

    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        times.append(time.monotonic())
        writer.close()

    listener = await asyncio.start_unix_server(hang_up, path)
    try:
        yield times
    finally:
        await stop_listening(listener)
        await listener.wait_closed()
