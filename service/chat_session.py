"""One connection's hold on a conversation: open or resume it, begin turns, and settle those that have ended."""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from google.protobuf.message import DecodeError
from opentelemetry import trace

from contract import keys
from contract.broker import Broker
from contract.chat import Begun, Handle, OpenTurn, Session, Turn
from contract.errors import (
    FieldViolation,
    InvalidRequest,
    LogBehind,
    SessionTaken,
    TurnRunning,
    UnknownGeneration,
    UnknownSession,
    Unreadable,
)
from contract.messages import Job
from contract.trace import inject_context
from llamaherd.v1 import chat_pb2, common_pb2
from service import events
from service.backoff import until_answered
from service.chat_format import Message, Role
from service.chat_history import FittedPrompt, fit_history, spec_of
from service.models import Models
from service.snapshot import text_of
from service.validate import Call
from telemetry import names

MIN_TTL_S, MAX_TTL_S, DEFAULT_TTL_S = 60, 86_400, 3_600
SUBMIT_WITHIN_MS = 10_000  # a turn that is not queued so long after it began has lost its gateway
TURN_WINDOW_MS = 120_000  # a turn goes on as long without a reader: its client may come back at another gateway

Check = Callable[[Call], Awaitable[Job]]  # what a call would queue; raises ServeError

tracer = trace.get_tracer("llamaherd.service")


@dataclass(frozen=True, slots=True)
class BegunTurn:
    """A turn to follow. `call` submits its generation; None: that was done, by this connection or an earlier one."""

    turn: OpenTurn
    call: Call | None


class ChatSession:
    """A conversation that this connection has joined.

    Attributes:
        settings: what turns will use.
        setup: what opened it, with the model's name filled in.
        view: the conversation when it was last looked at, without what was said: a stream may be idle for a day.
        num_turns: those in its history when it was joined.
    """

    def __init__(
        self,
        broker: Broker,
        models: Models,
        handle: Handle,
        caller: str,
        epoch: str,
        settings: common_pb2.Settings,
        setup: chat_pb2.ChatSetup,
        view: Session,
    ) -> None:
        self.settings = settings
        self.handle = handle
        self.caller = caller
        self.setup = setup
        self._broker = broker
        self._models = models
        self._epoch = epoch
        self.view = _outline(view)
        self.num_turns = len(view.turns)
        self._turns: Sequence[Turn] | None = view.turns

    @classmethod
    async def open(
        cls, broker: Broker, models: Models, check: Check, caller: str, setup: chat_pb2.ChatSetup
    ) -> "ChatSession":
        """A new conversation. Raises ServeError."""
        if setup.HasField("ttl_s") and not MIN_TTL_S <= setup.ttl_s <= MAX_TTL_S:
            text = f"is {setup.ttl_s}; the range is {MIN_TTL_S} to {MAX_TTL_S}"
            raise InvalidRequest([FieldViolation("setup.ttl_s", text)])
        kept = chat_pb2.ChatSetup()
        kept.CopyFrom(setup)
        kept.model = models.name_of(setup.model, "setup.model")
        settings = await settings_of(check, caller, kept)
        handle, epoch = Handle.new(), secrets.token_hex(8)
        view = Session(b"", "", next_turn=0, first_turn=0, turns=(), open=None, generations={})
        with tracer.start_as_current_span(names.SPAN_SESSION, attributes={names.ATTR_SESSION_ID: handle.session_id}):
            view = replace(view, trace=inject_context().get("traceparent", ""))
            ttl_ms = (setup.ttl_s if setup.HasField("ttl_s") else DEFAULT_TTL_S) * 1000
            packed = kept.SerializeToString()
            await broker.chat.open(handle, caller, packed, trace=view.trace, epoch=epoch, ttl_ms=ttl_ms)
        return cls(broker, models, handle, caller, epoch, settings, kept, view)

    @classmethod
    async def resume(cls, broker: Broker, models: Models, check: Check, caller: str, text: str) -> "ChatSession":
        """The conversation that a handle stands for; an earlier connection can begin no turn any more."""
        handle, epoch = Handle.parse(text), secrets.token_hex(8)
        view = None if handle is None else await broker.chat.join(handle, caller, epoch=epoch)
        if handle is None or view is None:
            raise UnknownSession
        try:
            setup = chat_pb2.ChatSetup.FromString(view.setup)
        except DecodeError as error:
            raise Unreadable(f"session {handle.session_id}", str(error)) from error
        settings = await settings_of(check, caller, setup)
        return cls(broker, models, handle, caller, epoch, settings, setup, view)

    @property
    def ready(self) -> chat_pb2.SessionReady:
        """What answers setup. A turn that is open, running or not, is yet to be followed to its end."""
        return chat_pb2.SessionReady(
            session_id=self.handle.session_id,
            resumption_handle=str(self.handle),
            num_turns=self.num_turns,
            settings=self.settings,
            generation_id=self.view.open.generation_id if self.view.open else "",
        )

    async def begin(self, message: chat_pb2.UserMessage) -> BegunTurn:
        """Begin a turn, or find the one that stands under the message's request_id.

        Raises InvalidRequest, TurnRunning, SessionTaken, UnknownSession, BrokerDown and what `Models.get` raises;
        nothing was begun then.
        """
        if message.HasField("request_id") and not 1 <= len(message.request_id) <= 128:
            raise InvalidRequest([FieldViolation("user_message.request_id", "has 1 to 128 characters")])
        while True:
            model = await self._models.get(self.setup.model)
            fitted = await fit_history(self.setup, await self._history(), message.content, model)
            number, first = self.view.next_turn, self.view.first_turn
            opening = OpenTurn(number, message.content, keys.new_generation_id(), None, first + fitted.num_dropped)
            outcome, found = await self._broker.chat.begin(
                self.handle, opening, epoch=self._epoch, request_id=message.request_id
            )
            match outcome:
                case Begun.BEGUN:
                    self.view = replace(self.view, next_turn=number + 1)
                    return BegunTurn(opening, self._call_of(opening, fitted))
                case Begun.SAME:
                    return BegunTurn(await self._earlier(found), None)
                case Begun.OPEN:
                    await self._look()
                    with suppress(LogBehind, Unreadable):  # then no turn is open; its followers were told
                        if not await self.settle():
                            raise TurnRunning(found)
                case Begun.MOVED:
                    continue  # the history is read anew
                case Begun.FENCED:
                    raise SessionTaken(self.handle.session_id)
                case Begun.GONE:
                    raise UnknownSession

    async def settle(self) -> bool:
        """End the open turn if its generation has ended, or is lost; whether no turn is open now.

        Raises LogBehind or Unreadable where it is damaged: the turn is forgotten, and no turn is open.
        """
        if (turn := self.view.open) is None:
            return True
        try:
            return await self._settle(turn)
        except (LogBehind, Unreadable):
            await self.forget(turn)
            raise

    async def _settle(self, turn: OpenTurn) -> bool:
        try:
            await self._broker.record(turn.generation_id, caller=self.caller)
        except UnknownGeneration:
            if await self._broker.now_ms() < turn.begun_ms + SUBMIT_WITHIN_MS:
                return False  # its gateway is about to queue it
            await self.forget(turn)  # it was never queued, or has expired
            return True
        ending = await self._broker.read_ending(turn.generation_id)
        if ending is None:
            return False
        if not events.is_ok(ending):
            await self.forget(turn)
            return True
        current = await self._broker.chat.join(self.handle, self.caller)  # an interrupt may have come meanwhile
        shown = current.open.shown if current is not None and current.open is not None else turn.shown
        said = await text_of(self._broker, turn.generation_id, shown)
        await self._broker.chat.end(self.handle, turn.number, said)
        return True

    async def finish(self, turn: OpenTurn) -> None:
        """Keep what a turn said, once its generation has ended. Waits for a broker that is away."""
        self.view = replace(self.view, open=turn)
        await until_answered(self.settle)
        self.view = replace(self.view, open=None, next_turn=max(self.view.next_turn, turn.number + 1))

    async def forget(self, turn: OpenTurn) -> None:
        """A turn that failed leaves nothing behind."""
        await self._broker.chat.end(self.handle, turn.number, None)

    async def interrupt(self, shown: int | None) -> bool:
        """End the running turn; whether one was running."""
        return await interrupt(self._broker, self.handle, self.caller, shown)

    async def heed_interrupt(self, turn: OpenTurn) -> None:
        """Cancel a turn that was interrupted, or whose conversation was ended, before its generation was queued.

        Who interrupts notes it first and cancels then; so one of the two finds the other's trace.
        """
        view = await self._broker.chat.join(self.handle, self.caller)
        if view is None or (view.open is not None and view.open.number == turn.number and view.open.is_interrupted):
            await _cancel(self._broker, turn.generation_id, self.caller)

    async def drop(self) -> None:
        """End the conversation, and its running turn."""
        await drop(self._broker, self.handle, self.caller)

    def rest(self) -> None:
        """Hold nothing of what was said until the next turn, which reads it anew."""
        self._turns = None

    def _call_of(self, turn: OpenTurn, prompt: FittedPrompt) -> Call:
        spec = spec_of(self.setup, prompt.messages, window_ms=TURN_WINDOW_MS, model=self.setup.model)
        return Call(self.caller, spec, None, generation_id=turn.generation_id, encoded=prompt.encoded)

    async def _history(self) -> Sequence[Turn]:
        """What was said; as it was when the conversation was joined, if nobody has rested since."""
        turns = self._turns
        self.rest()
        return (await self._look()).turns if turns is None else turns

    async def _look(self) -> Session:
        """Raises UnknownSession."""
        view = await self._broker.chat.join(self.handle, self.caller)
        if view is None:
            raise UnknownSession
        self.view = _outline(view)
        return view

    async def _earlier(self, number: int) -> OpenTurn:
        """A turn of the same request_id, open or ended; its log can be read for a while."""
        view = await self._look()
        if view.open is not None and view.open.number == number:
            return view.open
        generation_id = view.generations.get(number)
        if generation_id is None:
            raise UnknownGeneration(f"of turn {number}")
        return OpenTurn(number, "", generation_id, None, view.num_dropped if number == view.next_turn - 1 else 0)


def _outline(view: Session) -> Session:
    """Without texts."""
    return replace(view, setup=b"", turns=(), generations={})


async def interrupt(broker: Broker, handle: Handle, caller: str, shown: int | None) -> bool:
    """Note how far the user had read, then cancel; whether a turn was open. Raises UnknownSession."""
    generation_id = await broker.chat.interrupt(handle, caller, shown)
    if generation_id is None:
        raise UnknownSession
    return await _cancel(broker, generation_id, caller)


async def drop(broker: Broker, handle: Handle, caller: str) -> None:
    """End a conversation, and its running turn. One that is no more stays so."""
    await _cancel(broker, await broker.chat.drop(handle, caller), caller)


async def settings_of(check: Check, caller: str, setup: chat_pb2.ChatSetup) -> common_pb2.Settings:
    """What turns will use, by the code that checks and fills in a generation's. Raises ServeError."""
    if setup.sampling.HasField("n") and setup.sampling.n != 1:
        raise InvalidRequest([FieldViolation("setup.sampling.n", f"is {setup.sampling.n}; a turn has one answer")])
    messages = [Message(Role.SYSTEM, setup.system_prompt)] if setup.system_prompt else []
    spec = spec_of(setup, [*messages, Message(Role.USER, "?")], window_ms=TURN_WINDOW_MS, model=setup.model)
    spec.chat.allow_format_tags = False
    try:
        settings = events.settings_of(await check(Call(caller, spec, None)))
    except InvalidRequest as error:
        raise InvalidRequest([FieldViolation(_in_setup(v.field), v.description) for v in error.violations]) from None
    if not setup.sampling.HasField("seed"):
        settings.sampling.ClearField("seed")  # each turn draws its own
    return settings


def _in_setup(field: str) -> str:
    return "setup.system_prompt" if field.startswith("spec.chat.messages") else field.replace("spec.", "setup.", 1)


async def _cancel(broker: Broker, generation_id: str, caller: str) -> bool:
    if not generation_id:
        return False
    try:
        await broker.cancel(generation_id, caller=caller)
    except (UnknownGeneration, Unreadable):
        return False
    return True
