"""Clients that read nothing, on connections that take little before they are read."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from tests.service.gateways import RunningGateway, prompt
from tests.service.scripted_worker import Work

# A client that takes 64 KiB before it reads; by default gRPC lets it take some MiB.
NARROW = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536)]


@asynccontextmanager
async def narrow_channel(gateway: RunningGateway) -> AsyncIterator[grpc.aio.Channel]:
    """A connection of its own."""
    async with grpc.aio.insecure_channel(gateway.address, options=NARROW) as channel:
        yield channel


async def say_much(work: Work) -> None:
    """Half a MiB: more than a narrow client's window and what gRPC keeps for it."""
    for n in range(10):
        await work.say(*(f"{n}.{m} ".ljust(5000, ".") for m in range(10)))


async def has_room(gateway: RunningGateway) -> bool:
    """Whether another stream is let in; it leaves at once, and its place is free some time later."""
    call = gateway.stub.Generate(prompt())
    try:
        await call.read()
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False
    call.cancel()
    return True
