"""What a turn's prompt holds: the system prompt, as many of the last turns as fit, and what the user says now."""

import asyncio
from collections.abc import Sequence

from contract.chat import Turn
from contract.errors import FieldViolation, InvalidRequest
from llamaherd.v1 import chat_pb2, common_pb2
from service.chat_format import Message, Role
from service.models import ServedModel

MAX_MESSAGE_BYTES = 1024 * 1024
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


async def fit_history(
    setup: chat_pb2.ChatSetup, turns: Sequence[Turn], user: str, model: ServedModel
) -> tuple[list[Message], int]:
    """The messages of the turn's prompt, and how many of the oldest `turns` are left out.

    Whole turns go, the oldest first, until the prompt leaves room for the answer; the system prompt always stays.

    Raises InvalidRequest if the user's text is no text for a turn, or too long with no history at all.
    """
    check_text(user)
    alone = _messages(setup, (), user)
    await _encode_checked(model, alone)
    room = model.bundle.context_length - _reserved(setup, model)
    # More turns never make a shorter prompt, so the first number of dropped turns that fits is found by halving.
    low, high = 0, len(turns)
    if await _num_tokens(model, _messages(setup, turns, user)) <= room:
        high = 0
    while low < high:
        middle = (low + high) // 2
        if await _num_tokens(model, _messages(setup, turns[middle:], user)) <= room:
            high = middle
        else:
            low = middle + 1
    if low == len(turns) and (size := await _num_tokens(model, alone)) > room:
        text = f"makes a prompt of {size} tokens; this model takes {room} and an answer"
        raise InvalidRequest([FieldViolation("user_message.content", text)])
    return _messages(setup, turns[low:], user), low


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


async def _encode_checked(model: ServedModel, alone: Sequence[Message]) -> None:
    """Raises InvalidRequest, in the words of a conversation's client."""
    try:
        await asyncio.to_thread(model.tokenizer.encode_chat, alone, False)
    except InvalidRequest as error:
        named = [FieldViolation("user_message.content", violation.description) for violation in error.violations]
        raise InvalidRequest(named) from None


async def _num_tokens(model: ServedModel, messages: Sequence[Message]) -> int:
    return len(await asyncio.to_thread(model.tokenizer.encode_chat, messages, True))
