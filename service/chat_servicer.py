"""llamaherd.v1.ChatService: conversations that live in the broker and go on at any gateway."""

from collections.abc import AsyncIterator, Mapping

from contract.broker import Broker
from contract.chat import Handle
from contract.errors import UnknownSession
from llamaherd.v1 import chat_pb2
from service.admission import Admission
from service.chat_session import ChatSession, drop, interrupt
from service.chat_stream import ChatStream, first_message, resume_of
from service.chat_turn import say_turn, turn_span
from service.context import Context
from service.cursor import Resume
from service.follow import Follower
from service.models import Models
from service.rpc import Handler
from service.servicer import ANONYMOUS


class ChatServicer:
    """The RPCs.

    Args:
        setup_timeout_s: how long the setup of a chat stream may take to come.
        drain_timeout_s: how long streams may go on once this gateway drains.
    """

    def __init__(
        self,
        broker: Broker,
        models: Models,
        follower: Follower,
        admission: Admission,
        *,
        setup_timeout_s: float,
        drain_timeout_s: float,
    ) -> None:
        self._broker = broker
        self._models = models
        self._follower = follower
        self._admission = admission
        self._setup_timeout_s = setup_timeout_s
        self._drain_timeout_s = drain_timeout_s

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """By the names of the methods."""
        return {
            "Chat": self.chat,
            "SendTurn": self.send_turn,
            "Interrupt": self.interrupt,
            "OpenSession": self.open_session,
            "EndSession": self.end_session,
        }

    async def chat(self, requests: AsyncIterator[chat_pb2.ChatRequest], context: Context) -> None:
        """A conversation on one stream."""
        setup = await first_message(requests, self._setup_timeout_s)
        with self._admission.enter():
            session = await self._join(setup, setup.resumption_handle)
            stream = ChatStream(context, session, self._follower, self._admission, self._drain_timeout_s)
            await stream.run(requests, resume_of(setup))

    async def send_turn(self, request: chat_pb2.SendTurnRequest, context: Context) -> bytes:
        """One turn of a conversation, old or new."""
        session = await self._join(request.setup, request.session_handle)
        with turn_span(session, context.carrier):
            begun = await session.begin(request.user_message)
            await context.write(chat_pb2.SendTurnResponse(ready=session.ready).SerializeToString())
            return await say_turn(session, self._follower, begun, Resume(0, None), context.write)

    async def interrupt(self, request: chat_pb2.InterruptRequest, context: Context) -> chat_pb2.InterruptResponse:
        """End the turn that a conversation is in the middle of."""
        if (handle := Handle.parse(request.session_handle)) is None:
            raise UnknownSession
        shown = request.num_tokens_shown if request.HasField("num_tokens_shown") else None
        return chat_pb2.InterruptResponse(was_running=await interrupt(self._broker, handle, ANONYMOUS, shown))

    async def open_session(
        self, request: chat_pb2.OpenSessionRequest, context: Context
    ) -> chat_pb2.OpenSessionResponse:
        """What setup is to Chat, without a stream."""
        with self._admission.enter():
            session = await self._join(request.setup, request.setup.resumption_handle)
            return chat_pb2.OpenSessionResponse(ready=session.ready)

    async def end_session(self, request: chat_pb2.EndSessionRequest, context: Context) -> chat_pb2.EndSessionResponse:
        """Delete a conversation. Asked twice it is the same: the first answer may have been lost."""
        if (handle := Handle.parse(request.session_handle)) is None:
            raise UnknownSession
        await drop(self._broker, handle, ANONYMOUS)
        return chat_pb2.EndSessionResponse()

    async def _join(self, setup: chat_pb2.ChatSetup, handle: str) -> ChatSession:
        if handle:
            return await ChatSession.resume(self._broker, self._models, self._follower.check, ANONYMOUS, handle)
        return await ChatSession.open(self._broker, self._models, self._follower.check, ANONYMOUS, setup)
