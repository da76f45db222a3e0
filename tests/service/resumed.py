"""Attaching to a generation, and what that brought."""

from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from llamaherd.v1 import common_pb2, generation_pb2
from tests.service.gateways import RunningGateway, open_stream, prompt
from tests.service.scripted_worker import ScriptedWorker, Work


@dataclass(slots=True)
class Resumed:
    """What an Attach brought."""

    from_position: int
    messages: list[generation_pb2.AttachResponse] = field(default_factory=list)

    @property
    def tokens(self) -> list[common_pb2.Token]:
        """In the order in which they came."""
        return [token for message in self.messages for token in message.tokens]

    @property
    def token_bytes(self) -> bytes:
        """The token messages, joined and in one canonical form."""
        joined = b"".join(message.SerializeToString() for message in self.messages if message.tokens)
        return generation_pb2.AttachResponse.FromString(joined).SerializeToString()

    @property
    def finishes(self) -> dict[int, common_pb2.ChoiceFinished]:
        """By choice; none comes twice."""
        found = [m.choice_finished for m in self.messages if m.HasField("choice_finished")]
        by_choice = {finish.choice: finish for finish in found}
        assert len(by_choice) == len(found), "a choice's end came twice"
        return by_choice

    @property
    def kinds(self) -> list[str]:
        """As `Received.kinds`."""
        kinds = [message.WhichOneof("event") or "tokens" for message in self.messages if not message.HasField("queued")]
        return [kind for n, kind in enumerate(kinds) if n == 0 or kind != kinds[n - 1]]


def attaching(
    gateway: RunningGateway, generation_id: str, position: int = 0, chain: int | None = None
) -> tuple[Any, Resumed]:
    """An Attach that has begun."""
    request = generation_pb2.AttachRequest(generation_id=generation_id, from_position=position, chain=chain)
    return gateway.stub.Attach(request, timeout=30), Resumed(position)


async def read_all(call: Any, resumed: Resumed) -> Resumed:
    """To the end; raises the RpcError it ends with."""
    while (message := await call.read()) is not grpc.aio.EOF:
        resumed.messages.append(message)
    return resumed


async def read_tokens(call: Any, resumed: Resumed, num_tokens: int) -> None:
    """Until so many tokens have come."""
    while len(resumed.tokens) < num_tokens:
        message = await call.read()
        assert message is not grpc.aio.EOF
        resumed.messages.append(message)


async def attach(gateway: RunningGateway, generation_id: str, position: int = 0, chain: int | None = None) -> Resumed:
    """A whole Attach."""
    return await read_all(*attaching(gateway, generation_id, position, chain))


async def attach_error(
    gateway: RunningGateway, generation_id: str, position: int = 0, chain: int | None = None
) -> grpc.aio.AioRpcError:
    """The error that an Attach ends with; no token comes before it."""
    call, resumed = attaching(gateway, generation_id, position, chain)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_all(call, resumed)
    assert resumed.tokens == []
    return caught.value


async def begin(gateway: RunningGateway, worker: ScriptedWorker, request_id: str) -> tuple[Any, Any, Work]:
    """A generation of three choices with a resume window, its first stream, and its worker."""
    request = prompt(request_id=request_id)
    request.spec.sampling.n = 3
    call, received = await open_stream(gateway, request)
    return call, received, await worker.take(received.generation_id)
