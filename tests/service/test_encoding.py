"""Prompts within a bound: what fits has the ids that it has without one, and what is beyond is told as far as known."""

import random

import pytest

from contract.bundle import ChatFormat, ChatFormatKind
from service.chat_format import Message, Role
from service.encoding import BoundedEncoder, TooManyTokens
from service.tokenizer import PromptTokenizer
from tests.service.test_chat_format import CHATML
from tests.service.test_tokenizer import FRAGMENTS
from tests.tokenizer_models import train_llama2_like, write_model_folder
from worker.bundle import build_bundle


@pytest.fixture(scope="module", params=[ChatFormat(ChatFormatKind.LLAMA2), ChatFormat(ChatFormatKind.JINJA, CHATML)])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PromptTokenizer:
    folder = write_model_folder(tmp_path_factory.mktemp("model"), train_llama2_like())
    return PromptTokenizer(build_bundle(folder, quantization="int8", chat_format=request.param))


def test_what_fits_is_encoded_and_what_does_not_is_counted(tokenizer: PromptTokenizer) -> None:
    """Never is refused what would fit; a number that is not exact is too low, and beyond the bound all the same."""
    source = random.Random(5)
    for _ in range(300):
        texts = ["".join(source.choices(FRAGMENTS, k=source.randrange(1, 20))) for _ in range(source.choice((1, 3, 5)))]
        messages = [Message((Role.USER, Role.ASSISTANT)[n % 2], text) for n, text in enumerate(texts)]
        ids: list[int] = []
        for part in tokenizer.chat_parts(messages, True):
            ids += tokenizer.encode_text(part) if isinstance(part, str) else [part]
        assert tokenizer.encode_chat(messages, True) == tokenizer.encode_chat(messages, True, len(ids)) == ids
        bound = len(ids) - source.randint(1, len(ids))
        with pytest.raises(TooManyTokens) as caught:
            tokenizer.encode_chat(messages, True, bound)
        told = str(caught.value)
        assert told == f"{len(ids)} tokens" or told in [f"at least {n} tokens" for n in range(bound + 1, len(ids) + 1)]


def test_a_prompt_of_one_text_is_counted_exactly_unless_its_length_tells(tokenizer: PromptTokenizer) -> None:
    text = "日本" * 100
    num_tokens, least = len(tokenizer.encode_prompt(text)), 1 + tokenizer.least_tokens(text)
    assert least < num_tokens
    with pytest.raises(TooManyTokens, match=f"^{num_tokens} tokens$"):
        tokenizer.encode_prompt(text, num_tokens - 1)
    with pytest.raises(TooManyTokens, match=f"^at least {least} tokens$"):
        tokenizer.encode_prompt(text, least - 1)


def test_parts_are_encoded_once_from_the_last_and_no_more_than_it_takes() -> None:
    """So that prompts which share their last turns cost what the longest that fits does."""
    encoded: list[str] = []

    class Letters:
        """A token for each character but blanks."""

        def encode_text(self, text: str) -> list[int]:
            encoded.append(text)
            return [ord(character) for character in text if character != " "]

        def least_tokens(self, text: str) -> int:
            return text.count("!")

    encoder = BoundedEncoder(Letters(), 8)
    with pytest.raises(TooManyTokens, match=r"^at least 13 tokens$"):
        encoder.encode([1, "first", "second", "third", "!"])
    assert encoded == ["!", "third", "second"]
    assert encoder.encode([1, "third", "!"]) == [1, *b"third", *b"!"]
    with pytest.raises(TooManyTokens, match=r"^13 tokens$"):
        encoder.encode([1, "second", "third", "!"])
    with pytest.raises(TooManyTokens, match=r"^at least 9 tokens$"):
        encoder.encode(["!!!", "third", "!"])
    assert encoded == ["!", "third", "second"]
