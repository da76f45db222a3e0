"""What a turn's prompt holds: the system prompt, as many of the last turns as fit, and what the user says now."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from contract.chat import Turn
from contract.errors import FieldViolation, InvalidRequest
from llamaherd.v1 import chat_pb2, common_pb2
from service.chat_format import Message, Role
from service.encoding import BoundedEncoder, EncodedPrompt, TooManyTokens
from service.models import ServedModel
from service.prompts import MAX_MESSAGES

MAX_MESSAGE_BYTES = 1024 * 1024
MAX_TURNS_SAID = (MAX_MESSAGES - 2) // 2  # beside the system prompt and what the user says now
MAX_RESERVED_TOKENS = 256  # kept free for an answer whose length nobody bounds; a quarter of a small context


def spec_of(
    setup: chat_pb2.ChatSetup, messages: Sequence[Message], *, window_ms: int, model: str
) -> common_pb2.GenerationSpec:
    """The generation of a turn.

    The texts were checked for tags of the format when they came; the model's own may hold some, which mean nothing
    there, since every turn is encoded as text.
    """
    roles = {Role.SYSTEM: common_pb2.ROLE_SYSTEM, Role.USER: common_pb2.ROLE_USER}
    chat = common_pb2.ChatInput(allow_format_tags=True)
    for message in messages:
        chat.messages.add(role=roles.get(message.role, common_pb2.ROLE_ASSISTANT), content=message.content)
    return common_pb2.GenerationSpec(
        model=model, chat=chat, sampling=setup.sampling, stopping=setup.stopping, resume_window_ms=window_ms
    )


@dataclass(frozen=True, slots=True)
class FittedPrompt:
    """A turn's prompt: its messages, its ids, and how many of the oldest turns are left out."""

    messages: list[Message]
    encoded: EncodedPrompt
    num_dropped: int


async def fit_history(setup: chat_pb2.ChatSetup, turns: Sequence[Turn], user: str, model: ServedModel) -> FittedPrompt:
    """The prompt of a turn that comes after `turns`.

    Whole turns go, the oldest first, until the prompt leaves room for the answer: it would not with one turn more. The
    system prompt always stays.

    Raises InvalidRequest if the user's text is no text for a turn, or too long with no history at all.
    """
    check_text(user)
    return await asyncio.to_thread(_fit, setup, turns, user, model)


def check_text(user: str) -> None:
    """Raises InvalidRequest for an empty text, or one beyond the bound."""
    if not user:
        raise InvalidRequest([FieldViolation("user_message.content", "is empty")])
    if (size := len(user.encode())) > MAX_MESSAGE_BYTES:
        raise InvalidRequest([FieldViolation("user_message.content", f"has {size} bytes; at most {MAX_MESSAGE_BYTES}")])


def _messages(setup: chat_pb2.ChatSetup, turns: Sequence[Turn], user: str) -> list[Message]:
    messages = [Message(Role.SYSTEM, setup.system_prompt)] if setup.system_prompt else []
    for turn in turns:
        messages += [Message(Role.USER, turn.user), Message(Role.ASSISTANT, turn.assistant)]
    return [*messages, Message(Role.USER, user)]


def _reserved(setup: chat_pb2.ChatSetup, model: ServedModel) -> int:
    if setup.stopping.HasField("max_new_tokens"):
        return setup.stopping.max_new_tokens
    return min(MAX_RESERVED_TOKENS, model.bundle.context_length // 4)


def _fit(setup: chat_pb2.ChatSetup, turns: Sequence[Turn], user: str, model: ServedModel) -> FittedPrompt:
    """Encodes each text at most once, and of the history little more than what fits."""
    alone = _messages(setup, (), user)
    _check_format(model, alone)
    room = model.bundle.context_length - _reserved(setup, model)
    encoder, ids = BoundedEncoder(model.tokenizer, room), None
    low, high = max(0, len(turns) - MAX_TURNS_SAID), len(turns)
    probe = low  # all of it, as most conversations are short; then by halving
    while low < high:
        messages = _messages(setup, turns[probe:], user)
        try:
            ids = encoder.encode(model.tokenizer.chat_parts(messages, allow_tags=True))
            high = probe
        except TooManyTokens:
            low = probe + 1
        probe = (low + high) // 2
    if ids is None:
        try:
            ids = encoder.encode(model.tokenizer.chat_parts(alone, allow_tags=True))
        except TooManyTokens as error:
            text = f"makes a prompt of {error}; this model takes {room} and an answer"
            raise InvalidRequest([FieldViolation("user_message.content", text)]) from None
    return FittedPrompt(_messages(setup, turns[low:], user), EncodedPrompt(model.digest, ids), low)


def _check_format(model: ServedModel, alone: Sequence[Message]) -> None:
    """Raises InvalidRequest, in the words of a conversation's client."""
    try:
        model.tokenizer.chat_parts(alone, allow_tags=False)
    except InvalidRequest as error:
        named = [FieldViolation("user_message.content", violation.description) for violation in error.violations]
        raise InvalidRequest(named) from None
