"""The input of a request to token ids: a prompt, a conversation, or ids; one way for every RPC that takes one."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence

from contract.bundle import ChatFormatKind
from contract.errors import InvalidRequest
from llamaherd.v1 import common_pb2
from service.chat_format import Message, Role
from service.encoding import TooManyTokens
from service.models import ServedModel
from service.violations import Violations

InThread = Callable[..., Awaitable[list[int]]]

MAX_REQUEST_BYTES = 4 * 1024 * 1024
MAX_MODEL_CHARS = 128
MAX_MESSAGES = 1024
MAX_IDS_AT_ONCE = 10_000  # checked between two events; more take a thread, as a text does

_ROLES = {
    common_pb2.ROLE_SYSTEM: Role.SYSTEM,
    common_pb2.ROLE_USER: Role.USER,
    common_pb2.ROLE_ASSISTANT: Role.ASSISTANT,
}


def check_input(spec: common_pb2.GenerationSpec, violations: Violations) -> None:
    """Whether model and input are of a form and size to go on with; needs no model."""
    if (size := spec.ByteSize()) > MAX_REQUEST_BYTES:
        violations.add("spec", f"has {size} bytes; at most {MAX_REQUEST_BYTES}")
    check_model_name(spec.model, "spec.model", violations)
    match spec.WhichOneof("input"):
        case None:
            violations.add("spec.input", "is missing: one of prompt, chat and token_ids is required")
        case "prompt" if not spec.prompt:
            violations.add("spec.prompt", "is empty; token_ids with the model's BOS alone begin a text from nothing")
        case "token_ids" if not spec.token_ids.ids:
            violations.add("spec.token_ids.ids", "is empty")
        case "chat":
            check_chat(spec.chat, "spec.chat", violations)


def check_model_name(name: str, field: str, violations: Violations) -> None:
    """Whether a model may be called so; '' is left to Models.name_of."""
    if len(name) > MAX_MODEL_CHARS:
        violations.add(field, f"has {len(name)} characters; at most {MAX_MODEL_CHARS}")


def check_chat(chat: common_pb2.ChatInput, field: str, violations: Violations) -> None:
    """Number of messages, roles that there are, and users that say something, as in every turn of a session.

    The order of roles is the chat format's to judge. An answer may be empty: one that was cancelled at its first token.
    """
    if not 1 <= len(chat.messages) <= MAX_MESSAGES:
        violations.add(f"{field}.messages", f"has {len(chat.messages)} messages; 1 to {MAX_MESSAGES}")
    for index, message in enumerate(chat.messages[:MAX_MESSAGES]):
        if message.role not in _ROLES:
            violations.add(f"{field}.messages[{index}].role", f"is {message.role}; must be system, user or assistant")
        elif message.role == common_pb2.ROLE_USER and not message.content:
            violations.add(f"{field}.messages[{index}].content", "is empty")


def messages_of(chat: common_pb2.ChatInput) -> list[Message]:
    """The messages of a conversation that passed `check_chat`."""
    return [Message(_ROLES[message.role], message.content) for message in chat.messages]


def has_chat_format(model: ServedModel, field: str, violations: Violations) -> bool:
    """Whether the model takes conversations; adds a violation if not."""
    if model.bundle.chat_format.kind is not ChatFormatKind.NONE:
        return True
    violations.add(field, f"model {model.name} is a base model without a chat format; send a prompt")
    return False


async def encode_input(
    spec: common_pb2.GenerationSpec,
    model: ServedModel,
    violations: Violations,
    *,
    max_tokens: int = sys.maxsize,
    in_thread: InThread = asyncio.to_thread,
) -> list[int]:
    """The prompt's ids; [] if a violation was added. Encodes in a thread: 4 MB of text take seconds.

    Args:
        max_tokens: a longer prompt is a violation. Where its length alone tells, it is not encoded.
        in_thread: runs a function with its arguments, in the thread for it.
    """
    field = f"spec.{spec.WhichOneof('input')}"
    try:
        match spec.WhichOneof("input"):
            case "prompt":
                return await in_thread(model.tokenizer.encode_prompt, spec.prompt, max_tokens)
            case "chat":
                if not has_chat_format(model, field, violations):
                    return []
                messages, allow_tags = messages_of(spec.chat), spec.chat.allow_format_tags
                return await in_thread(model.tokenizer.encode_chat, messages, allow_tags, max_tokens)
            case _:
                ids = spec.token_ids.ids
                if len(ids) > max_tokens:
                    raise TooManyTokens(len(ids), is_exact=True)
                if len(ids) <= MAX_IDS_AT_ONCE:
                    return _check_ids(ids, model, violations)
                return await in_thread(_check_ids, ids, model, violations)
    except InvalidRequest as error:
        violations.take_from(error, "spec.")
    except TooManyTokens as error:
        violations.add(field, f"prompt has {error}; this model accepts {max_tokens}")
    return []


def _check_ids(ids: Sequence[int], model: ServedModel, violations: Violations) -> list[int]:
    highest = model.bundle.vocab_size - 1
    if max(given := list(ids), default=0) <= highest:
        return given
    wrong = next(index for index, id_ in enumerate(given) if id_ > highest)
    violations.add(f"spec.token_ids.ids[{wrong}]", f"is {ids[wrong]}; ids are 0 to {highest}")
    return []
