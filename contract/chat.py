"""Conversations in Redis: one hash each, with the turns, the connection that may go on with it, and the open turn.

A handle is `<session id>.<secret>`: whoever has it, and is the caller that opened the session, may go on with it at any
gateway. The id alone says nothing and may be logged. `epoch` is a fence: the connection that joined last may begin
turns. The generation of a turn is kept before it is queued, so whoever joins finds the turn and its log.
"""

import enum
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from contract import keys
from contract.parsing import readable, telling
from contract.scripts import run_script

MAX_TURNS = 1024  # kept; the oldest go first
MAX_HISTORY_BYTES = 1024 * 1024  # of all texts kept


@dataclass(frozen=True, slots=True)
class Handle:
    """What a client resumes with."""

    session_id: str
    secret: str

    @classmethod
    def new(cls) -> Self:
        """128 random bits each."""
        return cls(keys.new_id(), secrets.token_hex(16))

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """None for what is no handle; keys are made of nothing but an id of the right form."""
        session_id, dot, secret = text.partition(".")
        is_handle = dot and all(len(p) == 32 and set(p) <= set("0123456789abcdef") for p in (session_id, secret))
        return cls(session_id, secret) if is_handle else None

    def __str__(self) -> str:
        return f"{self.session_id}.{self.secret}"


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn that ended well."""

    number: int
    user: str
    assistant: str


@dataclass(frozen=True, slots=True)
class OpenTurn:
    """A turn that nobody has ended yet: its generation runs, or has ended unnoticed."""

    number: int
    user: str
    generation_id: str
    shown: int | None  # tokens that the user had seen at an interrupt; None without one, or for all
    num_dropped: int  # turns before it that its prompt leaves out
    begun_ms: int = 0  # on Redis' clock, once it has begun
    is_interrupted: bool = False  # its generation is to be cancelled, as soon as there is one


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation as it stands.

    Attributes:
        setup: the serialized ChatSetup that opened it.
        trace: the W3C traceparent of the span that opened it; '' for none.
        next_turn: number of the next turn.
        first_turn: number of the oldest turn that is kept.
        turns: those kept that ended well, in order.
        generations: of the last turns, by number; a turn's log lives on for a while after it.
        num_dropped: turns that the prompt of the turn begun last leaves out.
    """

    setup: bytes
    trace: str
    next_turn: int
    first_turn: int
    turns: tuple[Turn, ...]
    open: OpenTurn | None
    generations: dict[int, str]
    num_dropped: int = 0


class Begun(enum.Enum):
    """What became of a turn that was to begin."""

    BEGUN = "BEGUN"
    SAME = "SAME"  # its request_id stands for an earlier turn, given by its number
    OPEN = "OPEN"  # another turn has not ended
    MOVED = "MOVED"  # turns were added since the session was read
    FENCED = "FENCED"  # another connection has joined
    GONE = "GONE"  # ended or expired


class ChatStore:
    """The calls. Each is one script that may be repeated after a lost reply.

    Errors come out as BrokerDown; a conversation that is damaged as Unreadable.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    async def open(self, handle: Handle, caller: str, setup: bytes, *, trace: str, epoch: str, ttl_ms: int) -> None:
        """A new conversation, which this connection may go on with."""
        answer = await self._run("chat_open", handle, [caller, handle.secret, setup, trace, epoch, ttl_ms])
        assert answer == b"OK", "128 random bits came twice"

    async def join(self, handle: Handle, caller: str, *, epoch: str = "") -> Session | None:
        """The conversation, which with an epoch is that connection's from here on; None if there is none."""
        answer = await self._run("chat_join", handle, [caller, handle.secret, epoch])
        with readable(_name(handle)):
            return None if answer is None else parse_session(answer)

    async def begin(self, handle: Handle, turn: OpenTurn, *, epoch: str, request_id: str) -> tuple[Begun, int]:
        """Begin a turn; what became of it, and the number of the turn that the answer is about."""
        arguments = [epoch, turn.number, turn.generation_id, request_id, turn.user, turn.num_dropped]
        answer = await self._run("chat_begin", handle, arguments)
        with readable(_name(handle)):
            return parse_begun(answer, turn.number)

    async def end(self, handle: Handle, turn: int, text: str | None) -> bool:
        """End the open turn with what was said; None: it failed, and is forgotten. Whether this call ended it."""
        arguments = [turn, 0 if text is None else 1, text or "", MAX_TURNS, MAX_HISTORY_BYTES]
        return bool(await self._run("chat_end", handle, arguments))

    async def interrupt(self, handle: Handle, caller: str, shown: int | None) -> str | None:
        """Note an interrupt; the generation to cancel, '' if no turn is open, None if there is no such session."""
        seen = "" if shown is None else shown
        answer = await self._run("chat_shown", handle, [caller, handle.secret, seen])
        return None if answer is None else bytes(answer).decode()

    async def drop(self, handle: Handle, caller: str) -> str:
        """Delete the conversation; the generation of a turn that was open, or ''."""
        answer = await self._run("chat_drop", handle, [caller, handle.secret])
        return bytes(answer or b"").decode()

    async def _run(self, script: str, handle: Handle, arguments: Sequence[Any]) -> Any:
        with readable(_name(handle)):
            return await run_script(self._client, script, [keys.chat(handle.session_id)], arguments)


def _name(handle: Handle) -> str:
    return f"session {handle.session_id}"


@telling
def parse_begun(answer: Sequence[bytes], number: int) -> tuple[Begun, int]:
    """What chat_begin.lua answers to a turn of this number."""
    return Begun(answer[0].decode()), int(answer[1]) if len(answer) > 1 else number


@telling
def parse_session(answer: Sequence[bytes]) -> Session:
    """What chat_join.lua answers."""
    fields = dict(zip((name.decode() for name in answer[::2]), answer[1::2], strict=True))
    first, following = int(fields["first"]), int(fields["next"])
    if not 0 <= first <= following <= first + MAX_TURNS + 1:  # the open one is in addition
        raise ValueError(f"turns {first} to {following}")
    int(fields["ttl"])  # the scripts need it
    open_turn = int(fields["open"]) if fields["open"] else None
    numbers = [n for n in range(first, following) if f"a:{n}" in fields]
    return Session(
        setup=fields["setup"],
        trace=fields["trace"].decode(),
        next_turn=following,
        first_turn=first,
        turns=tuple(Turn(n, fields[f"u:{n}"].decode(), fields[f"a:{n}"].decode()) for n in numbers),
        open=None if open_turn is None else _open_turn(fields, open_turn),
        generations={n: fields[f"g:{n}"].decode() for n in range(first, following) if f"g:{n}" in fields},
        num_dropped=int(fields["dropped"]),
    )


def _open_turn(fields: dict[str, bytes], number: int) -> OpenTurn:
    shown = fields["shown"]
    return OpenTurn(
        number=number,
        user=fields[f"u:{number}"].decode(),
        generation_id=fields[f"g:{number}"].decode(),
        shown=int(shown) if shown else None,
        num_dropped=int(fields["dropped"]),
        begun_ms=int(fields["begun_ms"]),
        is_interrupted=fields["stop"] == fields["open"],
    )
