"""A GenerationService that plays what a test wrote, for moments that a healthy gateway never shows."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc

from llamaherd.client.resume import CHAIN_START, extend_chain
from llamaherd.v1 import common_pb2, generation_pb2, generation_pb2_grpc

Context = grpc.aio.ServicerContext[generation_pb2.GenerateRequest, generation_pb2.GenerateResponse]
Script = Callable[[generation_pb2.GenerateRequest, Context], Awaitable[None]]


class _Servicer(generation_pb2_grpc.GenerationServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    async def Generate(self, request: generation_pb2.GenerateRequest, context: Context) -> None:
        await self._script(request, context)


@asynccontextmanager
async def serve(script: Script) -> AsyncIterator[str]:
    """Serve Generate by `script` on a free port of the loopback; gives HOST:PORT."""
    server = grpc.aio.server()
    register = generation_pb2_grpc.add_GenerationServiceServicer_to_server
    register(_Servicer(script), server)  # type: ignore[no-untyped-call]  # generated without types
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(grace=None)


def text_response(text: str, position: int = 0) -> generation_pb2.GenerateResponse:
    """A response that carries the token at this position, with this text; its id is its position too."""
    chain = CHAIN_START
    for token_id in range(position + 1):
        chain = extend_chain(chain, 0, token_id)
    token = common_pb2.Token(index=position, position=position, id=position, text=text, chain=chain)
    return generation_pb2.GenerateResponse(tokens=[token])
