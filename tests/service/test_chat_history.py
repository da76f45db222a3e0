"""What a turn's prompt holds of its conversation: as many turns as fit, each text encoded once, whatever the format."""

import dataclasses
import random
from collections import Counter
from pathlib import Path

import pytest

from contract.bundle import ChatFormat, ChatFormatKind, ModelBundle
from contract.chat import Turn
from contract.errors import InvalidRequest
from llamaherd.v1 import chat_pb2, common_pb2
from service.chat_format import Message, Role
from service.chat_history import MAX_TURNS_SAID, fit_history, spec_of
from service.models import ServedModel
from service.prompts import MAX_MESSAGES, check_input
from service.tokenizer import PromptTokenizer
from service.violations import Violations
from tests.service.bundles import bundle
from tests.service.test_chat_format import CHATML, INST_WITH_LITERAL_EOS
from tests.service.test_tokenizer import FRAGMENTS
from tests.tokenizer_models import train_llama2_like, write_model_folder
from worker.bundle import build_bundle

BARE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"  # one text
FORMATS = {
    "llama2": ChatFormat(ChatFormatKind.LLAMA2),
    "marked": ChatFormat(ChatFormatKind.JINJA, CHATML.replace("<|im_end|>", "</s>")),
    "inst": ChatFormat(ChatFormatKind.JINJA, INST_WITH_LITERAL_EOS),
    "bare": ChatFormat(ChatFormatKind.JINJA, BARE),
}
CONTEXT, RESERVED = 256, 40
SETUP = chat_pb2.ChatSetup(stopping=common_pb2.Stopping(max_new_tokens=RESERVED))


def served(model: ModelBundle) -> ServedModel:
    """As `Models` has it."""
    return ServedModel("chat", model.digest, model, PromptTokenizer(model))


@pytest.fixture(scope="module", params=list(FORMATS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    folder = write_model_folder(tmp_path_factory.mktemp("model"), train_llama2_like())
    return served(build_bundle(folder, quantization="int8", chat_format=FORMATS[request.param]))


def messages_of(system: str, turns: list[Turn], user: str) -> list[Message]:
    """A conversation, and what the user says now."""
    said = [Message(*each) for t in turns for each in ((Role.USER, t.user), (Role.ASSISTANT, t.assistant))]
    return [*([Message(Role.SYSTEM, system)] if system else []), *said, Message(Role.USER, user)]


async def test_as_many_turns_as_fit_are_kept(model: ServedModel) -> None:
    """The ids are those of the whole prompt; with one turn more it would be too long. Short and long ones, any text."""
    source = random.Random(7)
    has_system = "user') !=" not in model.bundle.chat_format.template  # its roles begin with the user
    dropped: Counter[bool] = Counter()
    for _ in range(60):
        texts = ["".join(source.choices(FRAGMENTS, k=source.choice((1, 4, 12)))) for _ in range(2 * 12)]
        turns = [Turn(n, *texts[2 * n : 2 * n + 2]) for n in range(source.randrange(12))]
        system = source.choice(["", "Be kind. "]) if has_system else ""
        setup = chat_pb2.ChatSetup(system_prompt=system, stopping=SETUP.stopping)
        fitted = await fit_history(setup, turns, "and now?", model)

        assert fitted.messages == messages_of(system, turns[fitted.num_dropped :], "and now?")
        assert fitted.encoded.ids == model.tokenizer.encode_chat(fitted.messages, True)
        assert fitted.encoded.digest == model.digest
        assert len(fitted.encoded.ids) <= CONTEXT - RESERVED
        if fitted.num_dropped:
            longer = messages_of(system, turns[fitted.num_dropped - 1 :], "and now?")
            assert len(model.tokenizer.encode_chat(longer, True)) > CONTEXT - RESERVED
        dropped[fitted.num_dropped > 0] += 1
    assert min(dropped[True], dropped[False]) > 5


async def test_each_text_is_encoded_once_and_few_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a long conversation as of a short one."""
    folder = write_model_folder(tmp_path, train_llama2_like())
    model = served(build_bundle(folder, quantization="int8", chat_format=FORMATS["llama2"]))
    encoded: Counter[str] = Counter()
    own = PromptTokenizer.encode_text

    def encode_text(tokenizer: PromptTokenizer, text: str) -> list[int]:
        encoded[text] += 1
        return own(tokenizer, text)

    monkeypatch.setattr(PromptTokenizer, "encode_text", encode_text)
    turns = [Turn(n, f"question {n}?", f"answer {n}") for n in range(400)]
    setup = chat_pb2.ChatSetup(system_prompt="Be kind.", stopping=SETUP.stopping)
    for so_many in (0, 2, 400):
        encoded.clear()
        fitted = await fit_history(setup, turns[:so_many], "and now?", model)
        assert set(encoded.values()) == {1}
        not_kept = len(encoded) - (so_many - fitted.num_dropped) - 1
        assert not_kept <= (0 if so_many < 3 else 10)  # one at the border, and the system prompt before other turns


async def test_a_text_too_long_for_any_history_is_refused_with_what_is_known(model: ServedModel) -> None:
    """By its length alone where that tells."""
    text = "日本 " * 120
    size = len(model.tokenizer.encode_chat([Message(Role.USER, text)], True))
    with pytest.raises(InvalidRequest) as caught:
        await fit_history(SETUP, [Turn(0, "a", "b")], text, model)
    (violation,) = caught.value.violations
    assert violation.field == "user_message.content"
    assert violation.description == f"makes a prompt of {size} tokens; this model takes 216 and an answer"

    with pytest.raises(InvalidRequest) as caught:
        await fit_history(SETUP, [], "x" * 1_000_000, model)
    assert caught.value.violations[0].description.startswith("makes a prompt of at least ")


async def test_a_prompt_has_no_more_turns_than_a_request_may_have_messages() -> None:
    """Where a large context would take more of the short turns that are kept."""
    large = served(dataclasses.replace(bundle(), context_length=1_000_000))
    turns = [Turn(n, "a", "b") for n in range(MAX_TURNS_SAID + 9)]
    fitted = await fit_history(chat_pb2.ChatSetup(system_prompt="Be kind."), turns, "c", large)
    violations = Violations()
    spec = spec_of(SETUP, fitted.messages, window_ms=0, model="chat")
    check_input(spec, violations)
    violations.raise_if_any()
    assert fitted.num_dropped == 9
    assert len(spec.chat.messages) == MAX_MESSAGES
