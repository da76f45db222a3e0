"""Gateways for tests: the real process' `serve` in this event loop, on a free port."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from llamaherd.v1 import common_pb2, generation_pb2, generation_pb2_grpc
from service.gateway import serve
from service.settings import GatewaySettings


@dataclass(slots=True)
class RunningGateway:
    """A gateway and a channel to it."""

    address: str
    channel: grpc.aio.Channel
    stub: generation_pb2_grpc.GenerationServiceStub
    stop: asyncio.Event
    ended: "asyncio.Task[None]"


@asynccontextmanager
async def running_gateway(redis_url: str, **settings: Any) -> AsyncIterator[RunningGateway]:
    """Serve for the length of the block; then drain."""
    stop = asyncio.Event()
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    ended = asyncio.create_task(
        serve(GatewaySettings(redis_url=redis_url, port=0, **settings), stop, on_listening=port.set_result)
    )
    ended.add_done_callback(lambda _: port.done() or port.cancel())
    try:
        await port
    except asyncio.CancelledError:
        await ended  # tells why it ended instead of listening
        raise
    address = f"127.0.0.1:{port.result()}"
    try:
        async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            yield RunningGateway(address, channel, stub, stop, ended)
    finally:
        stop.set()
        await ended


def prompt(text: str = "hello", request_id: str | None = None, model: str = "chat") -> generation_pb2.GenerateRequest:
    """The smallest request."""
    return generation_pb2.GenerateRequest(
        spec=common_pb2.GenerationSpec(model=model, prompt=text), request_id=request_id
    )


@dataclass(slots=True)
class Received:
    """What a stream brought, checked on the way: positions without gap or repeat, events in their order."""

    messages: list[generation_pb2.GenerateResponse]

    def add(self, message: generation_pb2.GenerateResponse) -> None:
        """The next message."""
        position = self.num_tokens
        for token in message.tokens:
            assert token.position == position, f"token {token.position} came where {position} was due"
            position += 1
        self.messages.append(message)

    @property
    def num_tokens(self) -> int:
        """Tokens so far."""
        return sum(len(message.tokens) for message in self.messages)

    @property
    def text(self) -> str:
        """Their text."""
        return "".join(token.text for message in self.messages for token in message.tokens)

    @property
    def ids(self) -> list[int]:
        """Their ids."""
        return [token.id for message in self.messages for token in message.tokens]

    def only(self, kind: str) -> generation_pb2.GenerateResponse:
        """The one message of this kind."""
        (message,) = [message for message in self.messages if message.WhichOneof("event") == kind]
        return message

    @property
    def kinds(self) -> list[str]:
        """The kind of each message, neighbours of the same kind as one; without `queued`, which depends on others."""
        kinds = [message.WhichOneof("event") or "tokens" for message in self.messages if not message.HasField("queued")]
        return [kind for n, kind in enumerate(kinds) if n == 0 or kind != kinds[n - 1]]

    @property
    def generation_id(self) -> str:
        """From accepted."""
        return self.messages[0].accepted.generation_id


async def open_stream(
    gateway: RunningGateway, request: generation_pb2.GenerateRequest, timeout_s: float | None = None
) -> tuple[Any, Received]:
    """A call whose `accepted` has come."""
    call = gateway.stub.Generate(request, timeout=timeout_s)
    received = Received([])
    message = await call.read()
    assert message is not grpc.aio.EOF
    received.add(message)
    assert message.HasField("accepted")
    return call, received


async def read_until(call: Any, received: Received, num_tokens: int) -> None:
    """Read messages until `num_tokens` tokens are there."""
    while received.num_tokens < num_tokens:
        message = await call.read()
        assert message is not grpc.aio.EOF, f"ended after {received.num_tokens} tokens"
        received.add(message)


async def read_rest(call: Any, received: Received) -> Received:
    """What is left of a stream; raises the RpcError it ends with."""
    while (message := await call.read()) is not grpc.aio.EOF:
        received.add(message)
    return received


async def error_of(call: Any, received: Received | None = None) -> grpc.aio.AioRpcError:
    """The error that a stream ends with; what comes before it is added to `received`."""
    try:
        await read_rest(call, Received([]) if received is None else received)
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call ended with OK")


async def answer_of(call: Awaitable[Any]) -> Any:
    """The answer of a call, or the error that it ends with."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return error


async def first_answer(call: Any) -> Any:
    """The stream's first message, then it is cancelled; or the error it ends with."""
    try:
        message = await call.read()
    except grpc.aio.AioRpcError as error:
        return error
    call.cancel()
    return message
