"""From a dialog to the parts of a prompt: texts, each encoded by itself, and control token ids between them.

Llama 2's format is that of `chat_completion` in Meta's llama/generation.py. Any other is the model's own jinja
template (`service/chat_template.py`).
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from contract.errors import FieldViolation, InvalidRequest


class Role(enum.StrEnum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a dialog."""

    role: Role
    content: str


LLAMA2_TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")

PromptPart = str | int
"""A text to encode by itself, or the id of a control token."""


def llama2_parts(messages: Sequence[Message], *, bos_id: int, eos_id: int) -> list[PromptPart]:
    """The prompt of a Llama 2 dialog: [system] user (assistant user)*.

    The system message joins the first user message, and only then are the ends stripped, as in the reference: with
    a system message, blanks before the first user text are kept.

    Raises:
        InvalidRequest: roles are out of order; one violation per message that is wrong.
    """
    _check_order(messages)
    texts = [message.content for message in messages]
    if messages[0].role is Role.SYSTEM:
        texts[:2] = [f"<<SYS>>\n{texts[0]}\n<</SYS>>\n\n{texts[1]}"]
    *finished, last = (text.strip() for text in texts)
    parts: list[PromptPart] = []
    for user, assistant in zip(finished[::2], finished[1::2], strict=True):
        parts += [bos_id, f"[INST] {user} [/INST] {assistant} ", eos_id]
    parts += [bos_id, f"[INST] {last} [/INST]"]
    return parts


def refuse_tags(messages: Sequence[Message], tags: Sequence[str] = LLAMA2_TAGS) -> None:
    """Raises InvalidRequest with one violation per message and tag found in it: text must not pose as a turn."""
    violations = [
        FieldViolation(content_field(index), f"contains the chat tag {tag}, which this request does not allow")
        for index, message in enumerate(messages)
        for tag in tags
        if tag in message.content
    ]
    if violations:
        raise InvalidRequest(violations)


def content_field(index: int) -> str:
    """The path of a message's content in GenerateRequest."""
    return f"chat.messages[{index}].content"


def _check_order(messages: Sequence[Message]) -> None:
    first_user = 1 if messages and messages[0].role is Role.SYSTEM else 0
    violations = []
    for index, message in enumerate(messages[first_user:], start=first_user):
        expected = Role.USER if (index - first_user) % 2 == 0 else Role.ASSISTANT
        if message.role is not expected:
            violations.append(
                FieldViolation(
                    f"chat.messages[{index}].role",
                    f"is {message.role}, must be {expected}: after an optional system message come user and "
                    "assistant in turns",
                )
            )
    if len(messages) == first_user:
        violations.append(FieldViolation("chat.messages", "has no user message"))
    elif not violations and messages[-1].role is not Role.USER:
        violations.append(
            FieldViolation(f"chat.messages[{len(messages) - 1}].role", "is assistant; the last must be user")
        )
    if violations:
        raise InvalidRequest(violations)
