"""What to generate: from Python arguments to a GenerationSpec."""

from collections.abc import Mapping, Sequence
from typing import TypedDict, cast

from llamaherd.v1 import common_pb2

Input = str | Sequence[common_pb2.ChatMessage] | Sequence[int] | common_pb2.GenerationSpec
"""Plain text to continue; a conversation, made of `system`, `user` and `assistant`; token ids; or a whole spec."""


class ChatKnobs(TypedDict, total=False):
    """How a conversation's turns are drawn and when they end; what is left out is the model's default.

    Bounds and defaults stand in `protos/llamaherd/v1/common.proto`, under the same names; the gateway checks them.
    """

    model: str  # may be left out where one model is served

    temperature: float  # 0 is greedy
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[int, float]
    seed: int

    max_new_tokens: int
    max_total_tokens: int
    max_time_ms: int
    min_new_tokens: int
    stop_strings: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool


class Knobs(ChatKnobs, total=False):
    """Everything a generation can be told."""

    n: int  # choices
    priority: common_pb2.Priority
    resume_window_ms: int  # how long the generation goes on without a reader; default: 30,000
    allow_format_tags: bool  # of a conversation alone: in text and ids there is no format to pose as

    logprobs: bool
    top_logprobs: int
    echo: bool
    prompt_logprobs: bool


def system(content: str) -> common_pb2.ChatMessage:
    """Instructions for the whole conversation; only as its first message."""
    return common_pb2.ChatMessage(role=common_pb2.ROLE_SYSTEM, content=content)


def user(content: str) -> common_pb2.ChatMessage:
    """What the user says."""
    return common_pb2.ChatMessage(role=common_pb2.ROLE_USER, content=content)


def assistant(content: str) -> common_pb2.ChatMessage:
    """What the model has said."""
    return common_pb2.ChatMessage(role=common_pb2.ROLE_ASSISTANT, content=content)


def build_spec(prompt: Input, knobs: Knobs | ChatKnobs) -> common_pb2.GenerationSpec:
    """The spec; knobs given beside a whole spec go before its own.

    Raises TypeError for a knob that there is not, and TypeError or ValueError, with the knob's name, for a value that
    no request can hold, such as a negative top_k.
    """
    spec = common_pb2.GenerationSpec()
    _set_input(spec, prompt)
    for name, value in knobs.items():
        if name not in Knobs.__annotations__:
            raise TypeError(f"no such argument: {name!r}")
        try:
            _set_knob(spec, name, value)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return spec


def _set_input(spec: common_pb2.GenerationSpec, prompt: Input) -> None:
    if isinstance(prompt, common_pb2.GenerationSpec):
        spec.CopyFrom(prompt)
    elif isinstance(prompt, str):
        spec.prompt = prompt
    elif not prompt or isinstance(prompt[0], common_pb2.ChatMessage):
        spec.chat.messages.extend(cast("Sequence[common_pb2.ChatMessage]", prompt))  # TypeError where one is none
    else:
        spec.token_ids.ids.extend(cast("Sequence[int]", prompt))


def _set_knob(spec: common_pb2.GenerationSpec, name: str, value: object) -> None:
    """Set the field of this name, wherever in the spec it is."""
    if name == "allow_format_tags" and not spec.HasField("chat"):  # setting it would make a conversation of the prompt
        if value:
            raise ValueError("only a conversation has a format; in other prompts tags are text like any other")
        return
    holders = (spec, spec.chat, spec.sampling, spec.stopping, spec.output)
    holder = next(holder for holder in holders if name in holder.DESCRIPTOR.fields_by_name)
    current = getattr(holder, name)
    if isinstance(value, Mapping):
        current.clear()
        current.update(value)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        del current[:]
        current.extend(value)
    else:
        setattr(holder, name, value)
