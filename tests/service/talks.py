"""Conversations for tests: a Chat stream to write to and read from, and the job of its open turn."""

from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2

from contract.broker import Broker
from contract.chat import Handle
from llamaherd.v1 import chat_pb2, chat_pb2_grpc, common_pb2
from tests.service.gateways import RunningGateway
from tests.service.scripted_worker import ScriptedWorker, Work
from tests.until import until

SETUP = chat_pb2.ChatSetup(model="chat", system_prompt="Be kind.")


class Talk:
    """A Chat stream that tests write to and read from."""

    def __init__(self, gateway: RunningGateway, traceparent: str = "") -> None:
        metadata = (("traceparent", traceparent),) if traceparent else ()
        self.gateway = gateway
        self.call = chat_pb2_grpc.ChatServiceStub(gateway.channel).Chat(metadata=metadata)
        self.ready = chat_pb2.SessionReady()

    async def setup(self, setup: chat_pb2.ChatSetup = SETUP) -> chat_pb2.SessionReady:
        """Open or resume."""
        await self.call.write(chat_pb2.ChatRequest(setup=setup))
        self.ready = (await self.event("ready")).ready
        return self.ready

    async def say(self, text: str, request_id: str | None = None) -> None:
        """The user's turn."""
        message = chat_pb2.UserMessage(content=text, request_id=request_id)
        await self.call.write(chat_pb2.ChatRequest(user_message=message))

    async def interrupt(self, shown: int | None = None) -> None:
        """End the running turn."""
        await self.call.write(chat_pb2.ChatRequest(interrupt=chat_pb2.InterruptTurn(num_tokens_shown=shown)))

    async def event(self, kind: str, tokens: list[common_pb2.Token] | None = None) -> chat_pb2.ChatResponse:
        """The next event of this kind; tokens before it are added to `tokens`, other events are passed over."""
        while (message := await self.call.read()) is not grpc.aio.EOF:
            if tokens is not None:
                tokens += message.tokens
            if message.WhichOneof("event") == kind:
                assert isinstance(message, chat_pb2.ChatResponse)
                return message
        raise AssertionError(f"the stream ended without {kind}")

    async def tokens(self, num_tokens: int) -> list[common_pb2.Token]:
        """Read until so many have come."""
        tokens: list[common_pb2.Token] = []
        while len(tokens) < num_tokens:
            message = await self.call.read()
            assert message is not grpc.aio.EOF
            tokens += message.tokens
        return tokens


async def next_work(broker: Broker, worker: ScriptedWorker, session: chat_pb2.SessionReady) -> Work:
    """The job of the turn that is open in this session."""

    async def generation() -> str:
        view = await broker.chat.join(handle_of(session), "anonymous")
        return view.open.generation_id if view is not None and view.open is not None else ""

    await until(generation, what="a turn is open")
    return await worker.take(await generation())


def handle_of(session: chat_pb2.SessionReady) -> Any:
    handle = Handle.parse(session.resumption_handle)
    assert handle is not None
    return handle


async def answer(work: Work, *texts: str) -> None:
    await work.say(*texts)
    await work.finish()


async def rest_of(call: Any) -> list[chat_pb2.SendTurnResponse]:
    events = []
    while (event := await call.read()) is not grpc.aio.EOF:
        events.append(event)
    return events


def detail(status: status_pb2.Status, kind: type[Message]) -> Any:
    (found,) = [each for each in status.details if each.Is(kind.DESCRIPTOR)]
    message = kind()
    found.Unpack(message)
    return message
