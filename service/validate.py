"""GenerationSpec to Job: every bound checked, defaults filled in, the prompt encoded. Types are trusted afterwards."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from contract.bundle import ChatFormatKind
from contract.errors import InvalidRequest
from contract.messages import Job
from contract.trace import inject_context
from llamaherd.v1 import common_pb2
from service.chat_format import Message, Role
from service.knobs import check_fit, check_output, check_stopping, resolve_sampling, resolve_stopping
from service.models import Models, ServedModel
from service.violations import Violations

MAX_REQUEST_BYTES = 4 * 1024 * 1024
MAX_REQUEST_ID_CHARS = 128
MAX_MODEL_CHARS = 128
MAX_MESSAGES = 1024
MAX_RESUME_WINDOW_MS = 600_000
DEFAULT_RESUME_WINDOW_MS = 30_000

_CLASSES = {
    common_pb2.PRIORITY_UNSPECIFIED: "normal",
    common_pb2.PRIORITY_HIGH: "high",
    common_pb2.PRIORITY_NORMAL: "normal",
    common_pb2.PRIORITY_LOW: "low",
}
_ROLES = {
    common_pb2.ROLE_SYSTEM: Role.SYSTEM,
    common_pb2.ROLE_USER: Role.USER,
    common_pb2.ROLE_ASSISTANT: Role.ASSISTANT,
}


@dataclass(frozen=True, slots=True)
class Call:
    """What the caller asked for, whichever RPC it came by."""

    caller: str
    spec: common_pb2.GenerationSpec
    request_id: str | None

    @property
    def window_ms(self) -> int:
        """How long the generation goes on unread; 0 cancels it at once."""
        if self.spec.HasField("resume_window_ms"):
            return self.spec.resume_window_ms
        return 0 if self.request_id is None else DEFAULT_RESUME_WINDOW_MS


async def validate(call: Call, generation_id: str, models: Models) -> Job:
    """The job that `call` asks for.

    Raises:
        InvalidRequest: with every violation there is.
        UnknownModel, NoWorker, BrokerDown: the model is not there, or it cannot be known.
    """
    violations = Violations()
    spec = call.spec
    _check_call(call, violations)
    violations.raise_if_any()  # neither the model's name nor the prompt is of a size to go on with
    model = await models.get(models.name_of(spec.model))
    sampling = resolve_sampling(spec.sampling, model.bundle, violations)
    check_stopping(spec.stopping, model.bundle, violations)
    check_output(spec.output, violations)
    prompt_ids = await _encode(spec, model, violations)
    if len(prompt_ids) >= model.bundle.context_length:
        text = f"prompt has {len(prompt_ids)} tokens; this model accepts {model.bundle.context_length - 1}"
        violations.add(f"spec.{spec.WhichOneof('input')}", text)
    elif prompt_ids:
        check_fit(spec.stopping, len(prompt_ids), model.bundle, violations)
    violations.raise_if_any()
    return Job(
        generation_id=generation_id,
        model=model.name,
        job_class=_CLASSES[spec.priority],
        prompt_ids=tuple(prompt_ids),
        sampling=sampling,
        stopping=resolve_stopping(spec.stopping, len(prompt_ids), model.bundle),
        strip_leading_space=spec.WhichOneof("input") == "chat",
        logprobs=spec.output.logprobs,
        trace_context=inject_context(),
    )


def _check_call(call: Call, violations: Violations) -> None:
    """What needs no model."""
    spec = call.spec
    if (size := spec.ByteSize()) > MAX_REQUEST_BYTES:
        violations.add("spec", f"has {size} bytes; at most {MAX_REQUEST_BYTES}")
    if call.request_id is not None and not 1 <= len(call.request_id) <= MAX_REQUEST_ID_CHARS:
        violations.add("request_id", f"has {len(call.request_id)} characters; 1 to {MAX_REQUEST_ID_CHARS}")
    if len(spec.model) > MAX_MODEL_CHARS:
        violations.add("spec.model", f"has {len(spec.model)} characters; at most {MAX_MODEL_CHARS}")
    if spec.priority not in _CLASSES:
        violations.add("spec.priority", f"is {spec.priority}, which is no priority")
    if spec.resume_window_ms > MAX_RESUME_WINDOW_MS:
        violations.add("spec.resume_window_ms", f"is {spec.resume_window_ms}; at most {MAX_RESUME_WINDOW_MS}")
    match spec.WhichOneof("input"):
        case None:
            violations.add("spec.input", "is missing: one of prompt, chat and token_ids is required")
        case "prompt" if not spec.prompt:
            violations.add("spec.prompt", "is empty")
        case "token_ids" if not spec.token_ids.ids:
            violations.add("spec.token_ids.ids", "is empty")
        case "chat":
            _check_chat(spec.chat, violations)


def _check_chat(chat: common_pb2.ChatInput, violations: Violations) -> None:
    if not 1 <= len(chat.messages) <= MAX_MESSAGES:
        violations.add("spec.chat.messages", f"has {len(chat.messages)} messages; 1 to {MAX_MESSAGES}")
    for index, message in enumerate(chat.messages[:MAX_MESSAGES]):
        if message.role not in _ROLES:
            violations.add(f"spec.chat.messages[{index}].role", f"is {message.role}; must be system, user or assistant")


async def _encode(spec: common_pb2.GenerationSpec, model: ServedModel, violations: Violations) -> list[int]:
    """The prompt's ids; [] if a violation was added. Encodes in a thread: 4 MB of text take seconds."""
    match spec.WhichOneof("input"):
        case "prompt":
            return await asyncio.to_thread(model.tokenizer.encode_prompt, spec.prompt)
        case "chat":
            if model.bundle.chat_format.kind is ChatFormatKind.NONE:
                violations.add("spec.chat", f"model {model.name} is a base model without a chat format; send a prompt")
                return []
            messages = [Message(_ROLES[m.role], m.content) for m in spec.chat.messages]
            try:
                return await asyncio.to_thread(model.tokenizer.encode_chat, messages, spec.chat.allow_format_tags)
            except InvalidRequest as error:
                violations.take_from(error, "spec.")
                return []
        case _:
            return _check_ids(spec.token_ids.ids, model, violations)


def _check_ids(ids: Sequence[int], model: ServedModel, violations: Violations) -> list[int]:
    highest = model.bundle.vocab_size - 1
    wrong = next((index for index, id_ in enumerate(ids) if id_ > highest), None)
    if wrong is None:
        return list(ids)
    violations.add(f"spec.token_ids.ids[{wrong}]", f"is {ids[wrong]}; ids are 0 to {highest}")
    return []
