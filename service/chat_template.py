"""Renders a model's own jinja chat template so that no message can forge a control token."""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from contract.errors import FieldViolation, InvalidRequest
from service.chat_format import LLAMA2_TAGS, Message, PromptPart


class ChatTemplate:
    """A compiled template.

    Every control token, given to the template as `bos_token` and `eos_token` or written in its source, is replaced
    by a random stand-in before rendering. The rendered text is split on the stand-ins, so that `</s>` or
    `<|im_start|>` in a message stays text. A stand-in never leaves this object.
    """

    def __init__(self, source: str, *, control_ids: Mapping[str, int], bos_token: str, eos_token: str) -> None:
        """Compile. Raises jinja2.TemplateSyntaxError.

        Args:
            source: the template as the model's publisher wrote it, for the environment that transformers gives it.
            control_ids: every control token by its text; `bos_token` and `eos_token` are among them.
        """
        self._stand_ins = {text: secrets.token_hex(16) for text in control_ids}
        self._ids = {self._stand_ins[text]: id_ for text, id_ in control_ids.items()}
        self._split = re.compile("(" + "|".join(self._ids) + ")")
        self._bos_token = self._stand_ins[bos_token]
        self._eos_token = self._stand_ins[eos_token]
        self.tags = tuple(tag for tag in LLAMA2_TAGS if tag in source)
        for text in sorted(control_ids, key=len, reverse=True):  # a token may contain another
            source = source.replace(text, self._stand_ins[text])
        self._template = _environment().from_string(source)

    def parts(self, messages: Sequence[Message]) -> list[PromptPart]:
        """The prompt of a dialog, ready for the assistant's answer.

        Raises:
            InvalidRequest: the dialog is empty, or the template refuses it (as by its order of roles).
        """
        if not messages:
            raise InvalidRequest([FieldViolation("chat.messages", "has no user message")])
        try:
            rendered = self._template.render(
                messages=[{"role": str(message.role), "content": message.content} for message in messages],
                bos_token=self._bos_token,
                eos_token=self._eos_token,
                add_generation_prompt=True,
                tools=None,
                documents=None,
            )
        except _Refusal as refusal:
            reason = f"refused by the model's chat template: {self._restore(str(refusal))}"
            raise InvalidRequest([FieldViolation("chat.messages", reason)]) from None
        return [self._ids.get(part, part) for part in self._split.split(rendered) if part]

    def _restore(self, text: str) -> str:
        for token, stand_in in self._stand_ins.items():
            text = text.replace(stand_in, token)
        return text


class _Refusal(jinja2.TemplateRuntimeError):
    """The template called `raise_exception`."""


def _environment() -> jinja2.Environment:
    """What transformers gives to chat templates, without its Python-only extras."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    """Unlike jinja's own filter, leaves <, > and non-ASCII as they are: the reader is no browser."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise _Refusal(message)
