"""One bidirectional chat stream: what the client says is taken in order, and at most one turn answers at a time."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import structlog
from google.protobuf import duration_pb2

from contract.errors import (
    BrokerDown,
    DeadlinePassed,
    Draining,
    FieldViolation,
    InvalidRequest,
    ServeError,
    SessionTaken,
    TurnRunning,
    UnknownSession,
    Unreadable,
)
from llamaherd.v1 import chat_pb2
from service import metrics
from service.admission import Admission
from service.chat_session import BegunTurn, ChatSession
from service.chat_turn import say_turn, turn_span
from service.context import Context
from service.cursor import Resume
from service.follow import Follower
from service.status import to_rich_status

_ENDS_STREAM = (Draining, SessionTaken, UnknownSession)  # nothing more can be said here

log = structlog.get_logger(__name__)


class ChatStream:
    """The stream of one connection.

    Invariant: `_turn` is the task of the turn that runs here, or None. Only `_write` writes.
    """

    def __init__(
        self, context: Context, session: ChatSession, follower: Follower, admission: Admission, drain_timeout_s: float
    ) -> None:
        self._context = context
        self._session = session
        self._follower = follower
        self._admission = admission
        self._drain_timeout_s = drain_timeout_s
        self._writing = asyncio.Lock()
        self._turn: asyncio.Task[None] | None = None
        self._over = asyncio.Event()

    async def run(self, requests: AsyncIterator[chat_pb2.ChatRequest], resume: Resume) -> None:
        """Answer setup, then serve until the client ends or half-closes, or this gateway drains. Raises ServeError."""
        structlog.contextvars.bind_contextvars(session_id=self._session.handle.session_id)
        await self._write(chat_pb2.ChatResponse(ready=self._session.ready).SerializeToString())
        self._session.rest()
        try:
            async with asyncio.TaskGroup() as group:
                if (turn := self._session.view.open) is not None:
                    self._start(group, BegunTurn(turn, None), resume)
                reading = group.create_task(self._read(requests, group), name="chat-requests")
                draining = group.create_task(self._leave_when_draining(), name="chat-drain")
                await self._over.wait()
                reading.cancel()
                draining.cancel()
        except BaseExceptionGroup as failures:
            raise _first(failures) from None

    async def _read(self, requests: AsyncIterator[chat_pb2.ChatRequest], group: asyncio.TaskGroup) -> None:
        """Take each message. After a half-close the running turn is still answered."""
        async for request in requests:
            match request.WhichOneof("message"):
                case "user_message":
                    await self._begin(request.user_message, group)
                case "interrupt":
                    await self._interrupt(request.interrupt)
                case "end":
                    await self._session.drop()
                    break
                case "setup":
                    raise InvalidRequest([FieldViolation("setup", "comes once, as the first message")])
                case _:
                    raise InvalidRequest([FieldViolation("message", "is missing")])
        if self._turn is not None:
            await asyncio.wait([self._turn])
        self._over.set()

    async def _begin(self, message: chat_pb2.UserMessage, group: asyncio.TaskGroup) -> None:
        number = self._session.view.next_turn
        if self._turn is not None:
            await self._fail(number, TurnRunning(number - 1))
            return
        try:
            begun = await self._session.begin(message)
        except _ENDS_STREAM:
            raise
        except ServeError as error:
            await self._fail(number, error)
        else:
            self._start(group, begun, Resume(0, None))

    async def _interrupt(self, message: chat_pb2.InterruptTurn) -> None:
        """Without a running turn it means nothing; the turn may just have ended."""
        shown = message.num_tokens_shown if message.HasField("num_tokens_shown") else None
        try:
            await self._session.interrupt(shown)
        except BrokerDown:
            log.warning("an interrupt was lost; the broker does not answer")

    def _start(self, group: asyncio.TaskGroup, begun: BegunTurn, resume: Resume) -> None:
        self._turn = group.create_task(self._say(begun, resume), name="chat-turn")

    async def _say(self, begun: BegunTurn, resume: Resume) -> None:
        """The turn's last message is written when the next turn may begin: its client answers at once."""
        try:
            with turn_span(self._session, self._context.carrier):
                last = await say_turn(self._session, self._follower, begun, resume, self._write, has_place=True)
        except _ENDS_STREAM:
            raise
        except ServeError as error:
            self._turn = None
            await self._fail(begun.turn.number, error)
        except BaseException as error:  # the stream ends with it, and its RPC does not know what was generated on it
            is_gone = isinstance(error, asyncio.CancelledError | grpc.aio.BaseError)
            metrics.note_failure("CANCELLED" if is_gone else "INTERNAL")
            raise
        else:
            self._turn = None
            await self._write(last)

    async def _leave_when_draining(self) -> None:
        """Tell the client where to go on, let the running turn end, and end the stream."""
        await self._admission.closed()
        handle = chat_pb2.Resumption(handle=str(self._session.handle))
        await self._write(chat_pb2.ChatResponse(resumption=handle).SerializeToString())
        left = duration_pb2.Duration()
        left.FromMilliseconds(int(self._drain_timeout_s * 1000))
        await self._write(chat_pb2.ChatResponse(go_away=chat_pb2.GoAway(time_left=left)).SerializeToString())
        if self._turn is not None:
            await asyncio.wait([self._turn])
        self._over.set()

    async def _fail(self, number: int, error: ServeError) -> None:
        if isinstance(error, Unreadable):
            log.error("what is kept cannot be read", error=str(error), why=error.why)
        failed = chat_pb2.TurnFailed(turn=number, status=to_rich_status(error))
        await self._write(chat_pb2.ChatResponse(turn_failed=failed).SerializeToString())

    async def _write(self, body: bytes) -> None:
        async with self._writing:
            await self._context.write(body)


async def first_message(requests: AsyncIterator[chat_pb2.ChatRequest], timeout_s: float) -> chat_pb2.ChatSetup:
    """The setup. Raises InvalidRequest, DeadlinePassed."""
    timeout = asyncio.timeout(timeout_s)
    try:
        async with timeout:
            request = await anext(requests)
    except StopAsyncIteration:
        raise InvalidRequest([FieldViolation("setup", "is missing: the stream ended before it")]) from None
    except TimeoutError:
        if not timeout.expired():
            raise
        raise DeadlinePassed("before setup came") from None
    if not request.HasField("setup"):
        raise InvalidRequest([FieldViolation("setup", "is missing: it comes first")])
    return request.setup


def resume_of(setup: chat_pb2.ChatSetup) -> Resume:
    """Where a running turn is gone on with."""
    return Resume(setup.from_position, setup.chain if setup.HasField("chain") else None)


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure to report: several tasks of one stream may find out at the same time that it is over."""
    ours, others = failures.split(ServeError)
    each: BaseException = ours or others or failures
    while isinstance(each, BaseExceptionGroup):
        each = each.exceptions[0]
    return each
