"""Finds a model folder's chat template and says which chat format it is."""

import json
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from contract.bundle import ChatFormat, ChatFormatKind
from worker.model_folder import ModelFolderError, read_json

_PROBE = (("system", "S s"), ("user", "U u"), ("assistant", "A a"), ("user", "V v"))
_PROBE_AS_LLAMA2 = "<s>[INST] <<SYS>>\nS s\n<</SYS>>\n\nU u [/INST] A a </s><s>[INST] V v [/INST]"


def read_chat_format(folder: Path) -> ChatFormat:
    """LLAMA2 if the folder's template renders a dialog as Meta's reference does, else JINJA; NONE without a template.

    Raises ModelFolderError for a template that does not compile.
    """
    template = _read_template(folder)
    if template is None:
        return ChatFormat(ChatFormatKind.NONE)
    if _render_probe(template) == _PROBE_AS_LLAMA2:
        return ChatFormat(ChatFormatKind.LLAMA2)
    return ChatFormat(ChatFormatKind.JINJA, template)


def _read_template(folder: Path) -> str | None:
    """The default template: a file of its own (newer), or in tokenizer_config.json, or in chat_template.json."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.json"):
        template = read_json(folder, name).get("chat_template")
        if isinstance(template, list):  # several named ones
            template = next((entry["template"] for entry in template if entry["name"] == "default"), None)
        if isinstance(template, str):
            return template
    return None


def _render_probe(source: str) -> str | None:
    """The probe dialog as the template has it; None if the template takes no such dialog."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = json.dumps
    environment.globals["raise_exception"] = _refuse
    try:
        template = environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ModelFolderError(f"the chat template does not compile: line {error.lineno}: {error.message}") from error
    messages: list[dict[str, Any]] = [{"role": role, "content": content} for role, content in _PROBE]
    try:
        return template.render(
            messages=messages,
            bos_token="<s>",
            eos_token="</s>",
            add_generation_prompt=True,
            tools=None,
            documents=None,
        )
    except (jinja2.TemplateError, TypeError, ValueError):
        return None


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateRuntimeError(message)
