"""The gateway's tokenizer against SentencePiece itself, over the same model."""

import dataclasses
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.bundle import ChatFormat, ChatFormatKind, ModelBundle, PieceKind
from service.chat_format import Message, Role
from service.tokenizer import PromptTokenizer
from tests.service.bundles import PIECES, bundle
from tests.tokenizer_models import (
    SPACE,
    train_llama2_like,
    train_with_equal_space_runs,
    write_model_folder,
)
from worker.bundle import build_bundle

FRAGMENTS = (
    *(" ", "  ", "    ", " " * 17, " " * 40, "\n", "\r\n", "\t", "\0", SPACE, SPACE * 3, "\ufeff", "\u00a0", "\ufffd"),
    *("<s>", "</s>", "<unk>", "<0x41>", "<0xE2>", "[INST]", "<<SYS>>", "<pad>", "<|im_end|>"),
    *("the", "st", "ea", "return", "12", "3", "é", "e\u0301", "🙂", "👩\u200d🚀", "日本", "שלום", "ǅ", "\U0010ffff"),
)
TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=4)), max_size=24).map("".join),
    st.text(alphabet=" ab\n" + SPACE, max_size=80),
)


class Pair:
    """Our tokenizer and SentencePiece over one model."""

    def __init__(self, folder: Path, serialized: bytes) -> None:
        self.reference = sentencepiece.SentencePieceProcessor(model_proto=serialized)
        self.bundle = build_bundle(write_model_folder(folder, serialized), quantization="int8")
        # What a gateway has is what came over the wire.
        self.ours = PromptTokenizer(ModelBundle.from_bytes(self.bundle.to_bytes()))
        self.chat: PromptTokenizer | None = None


@pytest.fixture(scope="module", params=["as-trained", "equal-space-runs", "user-defined"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    models = {
        "as-trained": train_llama2_like(),
        "equal-space-runs": train_with_equal_space_runs(),
        "user-defined": train_llama2_like(user_defined=("<pad>", f"{SPACE}st{SPACE}", "ab")),
    }
    return Pair(tmp_path_factory.mktemp("model"), models[request.param])


@given(text=TEXTS)
@settings(max_examples=1500, deadline=None, derandomize=True)
def test_any_text_encodes_as_sentencepiece_encodes_it(pair: Pair, text: str) -> None:
    """Leading and many spaces, newlines, NULs, emoji, a literal space sign, and text that spells control tokens."""
    assert pair.ours.encode_text(text) == pair.reference.encode(text)


@given(text=TEXTS)
@settings(max_examples=500, deadline=None, derandomize=True)
def test_decoding_what_was_encoded_gives_what_sentencepiece_gives(pair: Pair, text: str) -> None:
    """That is the text itself, but for a literal space sign: it comes back as a space, there as here."""
    decoded = pair.ours.decode(pair.ours.encode_text(text))
    assert decoded == pair.reference.decode(pair.reference.encode(text))
    assert decoded == text.replace(SPACE, " ")


def test_any_ids_decode_as_sentencepiece_decodes_them(pair: Pair) -> None:
    """Broken UTF-8, control tokens inside a character, unknown, and spaces at the start included."""
    source = random.Random(11)
    size = pair.reference.piece_size()
    for _ in range(3000):
        ids = [source.choice((source.randrange(size), source.randrange(259), source.randrange(3))) for _ in range(9)]
        assert pair.ours.decode(ids) == pair.reference.decode(ids), ids


def test_every_run_of_spaces_encodes_as_sentencepiece_encodes_it(pair: Pair) -> None:
    """Merges of equal score are the case that a merge list gets wrong first."""
    for length in range(200):
        for before, after in (("", ""), ("a", "b"), ("\n", "return"), (SPACE, "")):
            text = before + " " * length + after
            assert pair.ours.encode_text(text) == pair.reference.encode(text)


def test_no_text_becomes_a_control_token(pair: Pair) -> None:
    """The ids 0, 1 and 2 come only from our code."""
    for text in ("<unk>", "<s>", "</s>", "a</s>b", " </s> ", "<s><s>", "\0</s>", "<<s>s>"):
        ids = pair.ours.encode_text(text)
        assert not {0, 1, 2} & set(ids)
        assert pair.ours.decode(ids) == text


def test_text_that_spells_a_byte_piece_is_not_that_byte(pair: Pair) -> None:
    ids = pair.ours.encode_text("<0x41>")
    assert pair.bundle.pieces.index(("<0x41>", PieceKind.BYTE)) not in ids
    assert pair.ours.decode(ids) == "<0x41>"


def test_a_literal_space_sign_is_a_space(pair: Pair) -> None:
    """U+2581 has no encoding of its own in SentencePiece either."""
    assert pair.ours.encode_text(f"a{SPACE}b") == pair.ours.encode_text("a b") == pair.reference.encode(f"a{SPACE}b")


def test_empty_text_has_no_tokens(pair: Pair) -> None:
    """Not even the space before the text."""
    assert pair.ours.encode_text("") == pair.reference.encode("") == []
    assert list(pair.ours.encode_spans("")) == []
    assert pair.ours.encode_prompt("") == [1]
    assert pair.ours.decode([]) == ""


def test_a_prompt_is_bos_and_its_text(pair: Pair) -> None:
    assert pair.ours.encode_prompt("Hello  there") == [1, *pair.reference.encode("Hello  there")]


@given(text=TEXTS)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_spans_cover_the_text_in_order(pair: Pair, text: str) -> None:
    """Byte for byte and without overlap; each span's bytes are what its token decodes to."""
    encoded = text.encode()
    spans = list(pair.ours.encode_spans(text))
    assert [span.id for span in spans] == pair.ours.encode_text(text)
    assert [span.begin for span in spans] == [0, *(span.end for span in spans)][: len(spans)]
    assert b"".join(encoded[span.begin : span.end] for span in spans) == encoded
    for span in spans:
        piece, covered = pair.bundle.pieces[span.id], encoded[span.begin : span.end]
        if piece.kind is PieceKind.BYTE:
            assert piece.text == f"<0x{covered.hex().upper()}>"
        else:
            shown = covered.decode().replace(" ", SPACE)
            assert piece.text in (shown, SPACE + shown)


@given(texts=st.lists(TEXTS.filter(str.strip), min_size=1, max_size=3))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_spans_of_a_conversation_cover_what_its_format_makes_of_it(pair: Pair, texts: list[str]) -> None:
    """The rendered text, in order; BOS and EOS stand for none of it. The ids are those of a prompt."""
    roles = [Role.USER, Role.ASSISTANT, Role.USER][-len(texts) :] if len(texts) != 2 else [Role.SYSTEM, Role.USER]
    messages = [Message(role, text) for role, text in zip(roles, texts, strict=True)]
    rendered, spanning = with_chat(pair).encode_chat_spans(messages, allow_tags=True)
    spans = list(spanning)

    assert [span.id for span in spans] == with_chat(pair).encode_chat(messages, allow_tags=True)
    encoded = rendered.encode()
    covering = [span for span in spans if span.id not in (1, 2)]
    assert all((span.begin, span.end) == (0, 0) for span in spans if span.id in (1, 2))
    assert b"".join(encoded[span.begin : span.end] for span in covering) == encoded
    assert [span.begin for span in covering] == [0, *(span.end for span in covering)][: len(covering)]
    assert all(text.strip() in rendered for text in texts)


def with_chat(pair: Pair) -> PromptTokenizer:
    """The same vocabulary in a model that takes Llama 2's conversations."""
    if pair.chat is None:
        pair.chat = PromptTokenizer(dataclasses.replace(pair.bundle, chat_format=ChatFormat(ChatFormatKind.LLAMA2)))
    return pair.chat


def test_decoding_an_id_the_model_lacks_is_refused(pair: Pair) -> None:
    for id_ in (-1, pair.bundle.vocab_size):
        with pytest.raises(ValueError, match=f"token id {id_} is not in 0"):
            pair.ours.decode([id_])


def test_rows_that_pad_the_embedding_have_no_text(tmp_path: Path) -> None:
    serialized = train_llama2_like()
    size = sentencepiece.SentencePieceProcessor(model_proto=serialized).piece_size()
    folder = write_model_folder(tmp_path, serialized, vocab_size=size + 64)
    tokenizer = PromptTokenizer(build_bundle(folder, quantization="fp16"))
    assert tokenizer.decode([size, size + 63]) == ""


def test_no_text_has_fewer_tokens_than_its_length_tells(pair: Pair) -> None:
    """Nor one that is made of the longest pieces there are. The space before the text counts."""
    texts = [piece.text for piece in pair.bundle.pieces if piece.kind in (PieceKind.NORMAL, PieceKind.USER_DEFINED)]
    longest = sorted(texts, key=len, reverse=True)
    source = random.Random(3)
    for _ in range(1000):
        dense = "".join(source.choices(longest[: source.choice((1, 3, 40))], k=source.randrange(12)))
        mixed = "".join(source.choices(FRAGMENTS, k=source.randrange(24)))
        for text in (mixed, dense, dense.replace(SPACE, " "), dense + mixed):
            assert pair.ours.least_tokens(text) <= len(pair.reference.encode(text))
    for number in (1, 2, 9):
        text = "x" * (number * len(longest[0]) - 1)
        assert (pair.ours.least_tokens(text), pair.ours.least_tokens(text + "x")) == (number, number + 1)


def test_a_length_tells_nothing_where_characters_have_no_token() -> None:
    """A vocabulary without bytes, which no worker of ours announces, drops what it does not cover."""
    pieces = tuple(piece for piece in PIECES if piece.kind is not PieceKind.BYTE)
    tokenizer = PromptTokenizer(dataclasses.replace(bundle(), pieces=pieces, vocab_size=len(pieces)))
    assert tokenizer.least_tokens("日本" * 9) == 0
    assert len(tokenizer.encode_text("日本" * 9)) == 1  # the space before it


def test_threads_may_share_a_tokenizer(pair: Pair) -> None:
    texts = [f"thread {number} " * 50 for number in range(16)]
    with ThreadPoolExecutor(4) as pool:
        encoded: Iterator[list[int]] = pool.map(pair.ours.encode_text, texts)
        assert list(encoded) == [pair.reference.encode(text) for text in texts]
