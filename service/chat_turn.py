"""One turn of a conversation as messages of its stream: queued, started, tokens, turn_finished.

Tokens, `queued` and `started` have the same field numbers in every response, so what the relay brings passes as it is.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress

from opentelemetry import trace
from opentelemetry.trace import Link, SpanKind

from contract.chat import OpenTurn
from contract.errors import BrokerDown, ServeError
from contract.trace import extract_context
from llamaherd.v1 import chat_pb2, common_pb2, generation_pb2
from service import spans
from service.chat_session import BegunTurn, ChatSession
from service.cursor import Resume
from service.follow import Followed, Follower
from telemetry import names

_TOKENS = 0x0A  # the first byte of a message of tokens: field 1, length-delimited
tracer = trace.get_tracer("llamaherd.service")


async def say_turn(
    session: ChatSession,
    follower: Follower,
    begun: BegunTurn,
    resume: Resume,
    write: Callable[[bytes], Awaitable[None]],
    *,
    has_place: bool = False,
) -> bytes:
    """Write every message of the turn but the last, `turn_finished`, which is returned: another turn may begin then.

    Args:
        resume: where to begin, for a turn that stands.
        has_place: the RPC was let in for the whole conversation, which says one turn at a time.

    Raises ServeError. A turn that could not be queued, or whose generation failed, has left the history by then; one
    that this gateway cannot follow any further goes on.
    """
    started_s, has_tokens = time.monotonic(), False
    finished, completed = common_pb2.ChoiceFinished(), common_pb2.Completed()
    async with _followed(session, follower, begun, resume, has_place) as followed:
        while not followed.is_finished:
            for body in await followed.next_messages():
                if body[0] == _TOKENS:
                    await write(body)
                    continue
                message = generation_pb2.GenerateResponse.FromString(body)
                match message.WhichOneof("event"):
                    case "choice_finished":
                        finished = message.choice_finished
                    case "completed":
                        completed = message.completed
                    case _:
                        await write(body)
            if followed.num_tokens and not has_tokens:
                has_tokens = True
                spans.describe_first_token(time.monotonic() - started_s)
        await session.finish(begun.turn)
        spans.describe_ending(followed.ending, followed.job)
    return turn_finished(begun.turn, finished, completed).SerializeToString()


def turn_finished(
    turn: OpenTurn, finished: common_pb2.ChoiceFinished, completed: common_pb2.Completed
) -> chat_pb2.ChatResponse:
    """The last message of a turn."""
    return chat_pb2.ChatResponse(
        turn_finished=chat_pb2.TurnFinished(
            turn=turn.number,
            finished=finished,
            usage=completed.usage,
            timings=completed.timings,
            num_turns_dropped=turn.num_dropped,
        )
    )


@contextmanager
def turn_span(session: ChatSession, carrier: Mapping[str, str]) -> Iterator[None]:
    """The span of one turn: under the caller's, linked to the one that opened the conversation.

    Describes a turn that fails by a ServeError, which passes through.
    """
    opened = trace.get_current_span(extract_context({"traceparent": session.view.trace})).get_span_context()
    with tracer.start_as_current_span(
        names.SPAN_TURN,
        context=extract_context(carrier),
        kind=SpanKind.SERVER,
        links=[Link(opened)] if opened.is_valid else [],
        attributes={names.ATTR_SESSION_ID: session.handle.session_id},
        record_exception=False,
        set_status_on_exception=False,
    ):
        spans.describe_operation(is_chat=True, is_stream=True)
        try:
            yield
        except ServeError as error:
            spans.describe_failure(error)
            raise


@asynccontextmanager
async def _followed(
    session: ChatSession, follower: Follower, begun: BegunTurn, resume: Resume, has_place: bool
) -> AsyncIterator[Followed]:
    trace.get_current_span().set_attribute(names.ATTR_TURN, begun.turn.number)
    if begun.call is None:
        generation_id = begun.turn.generation_id
        async with follower.attach(generation_id, session.caller, resume, has_place=has_place) as followed:
            yield followed
        return
    is_queued = False
    try:
        async with follower.follow(begun.call, has_place=has_place) as followed:
            is_queued = True
            await session.heed_interrupt(begun.turn)
            yield followed
    except ServeError:
        if not is_queued:
            with suppress(BrokerDown):  # the next turn then finds it open, and no generation of it
                await session.forget(begun.turn)
        raise
