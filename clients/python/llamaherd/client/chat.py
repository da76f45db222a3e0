"""A conversation that lives in the service: what it asks for, and each of its turns as something to read. No I/O.

Each turn is one SendTurn call. A turn that broke is asked for again under its request_id, at any gateway, and nothing
is held open between turns; the bidirectional Chat only opens a conversation and ends it.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, Unpack

import grpc

from llamaherd.client.calls import FAREWELL_TIMEOUT_S, Farewell, StreamCall, UnaryCall
from llamaherd.client.errors import ConnectionBroken, HerdError, TurnRunning, Unavailable
from llamaherd.client.resume import Reading, Response, StreamRequest
from llamaherd.client.spec import ChatKnobs, build_spec
from llamaherd.v1 import chat_pb2, common_pb2

_CHAT = "/llamaherd.v1.ChatService/"

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class ChatCall(Generic[Answer]):
    """Messages for a bidirectional stream. `parse` makes the answer of the first response; the rest says nothing."""

    requests: tuple[chat_pb2.ChatRequest, ...]
    parse: Callable[[bytes], Answer]
    path: str = _CHAT + "Chat"


class TurnReading(Reading):
    """One turn, as a generation with one choice.

    Args:
        after: the turn before; if its reader has left it, it may be running for a moment yet.
    """

    def __init__(self, handle: str, message: chat_pb2.UserMessage, after: "TurnReading | None") -> None:
        super().__init__(None)
        self._sent = chat_pb2.SendTurnRequest(session_handle=handle, user_message=message)
        self._was_sent = False
        self._is_told = False
        self._follows_interrupt = after is not None and not after.is_complete

    @property
    def is_known(self) -> bool:
        """Whether the service has told of the turn."""
        return self._is_told

    def next_call(self) -> tuple[str, StreamRequest]:
        """The same every time: the service finds the turn by the message's request_id, and tells it from its start."""
        self._was_sent = True
        return _CHAT + "SendTurn", self._sent

    def read(self, body: bytes) -> Sequence[Response]:
        """What a serialized response adds."""
        self._is_told = True
        response = chat_pb2.SendTurnResponse.FromString(body)
        if response.HasField("turn_finished"):
            self.turn = response.turn_finished
        return [fresh for part in _parts(response) for fresh in self.take(part)]

    def failed(self, error: HerdError) -> HerdError:
        """The error to act on."""
        if isinstance(error, TurnRunning) and self._follows_interrupt:
            return Unavailable("the turn that was interrupted ends", grpc.StatusCode.UNAVAILABLE)
        return error

    def leave(self) -> bool:
        """Read no more. Whether the turn may still be running."""
        was_reading, self._is_left = self.goes_on, True
        return was_reading and self._was_sent


class Conversation:
    """What both clients' chats share: the calls they make.

    Args:
        setup: opens a new session, or with a handle goes on with an old one.
    """

    def __init__(self, setup: chat_pb2.ChatSetup) -> None:
        self._setup = setup
        self._ready: chat_pb2.SessionReady | None = None
        self._turn: TurnReading | None = None

    @property
    def ready(self) -> chat_pb2.SessionReady:
        """The answer to opening. Raises RuntimeError before that."""
        if self._ready is None:
            raise RuntimeError("the conversation is not open: use `with`, or `open`")
        return self._ready

    def opening(self) -> ChatCall[chat_pb2.SessionReady]:
        """Open, or resume."""
        return ChatCall((chat_pb2.ChatRequest(setup=self._setup),), _ready)

    def opened(self, ready: chat_pb2.SessionReady) -> None:
        """The answer to that."""
        self._ready = ready

    def sending(self, content: str, request_id: str | None, timeout_s: float | None) -> StreamCall:
        """The next turn."""
        message = chat_pb2.UserMessage(content=content, request_id=request_id or str(uuid.uuid4()))
        self._turn = TurnReading(self.ready.resumption_handle, message, self._turn)
        return StreamCall(self._turn, timeout_s, self._interrupt_read, may_come_back=request_id is not None)

    def interrupting(self, num_tokens_shown: int | None, timeout_s: float | None) -> UnaryCall[bool]:
        """End the running turn."""
        request = chat_pb2.InterruptRequest(
            session_handle=self.ready.resumption_handle, num_tokens_shown=num_tokens_shown
        )
        parse = chat_pb2.InterruptResponse.FromString
        return UnaryCall(_CHAT + "Interrupt", request, lambda body: parse(body).was_running, timeout_s)

    def ending(self) -> ChatCall[chat_pb2.SessionReady]:
        """Resume once more, to end the session and to delete what was said."""
        setup = chat_pb2.ChatSetup(resumption_handle=self.ready.resumption_handle)
        end = chat_pb2.ChatRequest(end=chat_pb2.EndSession())
        return ChatCall((chat_pb2.ChatRequest(setup=setup), end), _ready)

    def _interrupt_read(self, reading: Reading) -> Farewell:
        """The user has seen the turn as far as it was read."""
        yield self.interrupting(reading.position, FAREWELL_TIMEOUT_S)


class ChatFacts:
    """What is known of an open conversation. Raises RuntimeError before it is open."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    @property
    def handle(self) -> str:
        """Goes on with the conversation at any gateway and from any program, until it expires. Keep it like a key."""
        return self._conversation.ready.resumption_handle

    @property
    def session_id(self) -> str:
        """Its name in logs and traces."""
        return self._conversation.ready.session_id

    @property
    def settings(self) -> common_pb2.Settings:
        """What its turns use."""
        return self._conversation.ready.settings

    @property
    def num_turns(self) -> int:
        """Turns in the history when it was opened here."""
        return self._conversation.ready.num_turns

    @property
    def running_generation_id(self) -> str:
        """A turn that somebody had begun and not read to its end when it was opened here: `attach` reads it."""
        return self._conversation.ready.generation_id


def answered(answer: Answer | None) -> Answer:
    """The first response. Raises ConnectionBroken if the stream ended without one."""
    if answer is None:
        raise ConnectionBroken("the stream ended before its first response", grpc.StatusCode.UNKNOWN)
    return answer


def chat(
    *, system_prompt: str = "", handle: str = "", ttl_s: int | None = None, **knobs: Unpack[ChatKnobs]
) -> Conversation:
    """A conversation kept by the service: a context manager whose `send` streams the answer to a message.

    It outlives connections and gateways as streams do, and this program too: its `handle` goes on with it elsewhere.
    Leaving the block interrupts a turn that is still running, and keeps the conversation.

    Args:
        system_prompt: instructions for the whole conversation.
        handle: of a conversation to go on with; everything else is then as it was.
        ttl_s: seconds without a turn after which the conversation expires; default: 3,600.
        knobs: as for `generate`, for every turn.
    """
    spec = build_spec("", knobs)
    setup = chat_pb2.ChatSetup(
        model=spec.model,
        system_prompt=system_prompt,
        sampling=spec.sampling,
        stopping=spec.stopping,
        resumption_handle=handle,
        ttl_s=ttl_s,
    )
    return Conversation(setup)


def _ready(body: bytes) -> chat_pb2.SessionReady:
    return chat_pb2.ChatResponse.FromString(body).ready


def _parts(response: chat_pb2.SendTurnResponse) -> list[Response]:
    """The same as a generation's messages."""
    match response.WhichOneof("event"):
        case "queued":
            return [Response(queued=response.queued)]
        case "started":
            return [Response(started=response.started)]
        case "turn_finished":
            end = response.turn_finished
            completed = common_pb2.Completed(usage=end.usage, timings=end.timings)
            return [Response(choice_finished=end.finished), Response(completed=completed)]
        case _:
            return [Response(tokens=response.tokens)]
