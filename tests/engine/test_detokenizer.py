"""The detokenizer: the texts of single tokens, joined, are the decoding of the whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.fake_model import (
    BOS_ID,
    EOS_ID,
    FIRST_WORD_ID,
    VOCAB_SIZE,
    WORDS,
    byte_fallback_pieces,
    byte_ids,
)
from worker.engine.detokenizer import Detokenizer, PieceKind, TokenPieces

PIECES = byte_fallback_pieces()


def texts_of(token_ids: list[int], *, strip_leading_space: bool = False) -> list[str]:
    """What each token releases; the flush comes last."""
    detokenizer = Detokenizer(PIECES, strip_leading_space=strip_leading_space)
    return [detokenizer.push(token_id) for token_id in token_ids] + [detokenizer.flush()]


def word_id(piece: str) -> int:
    """Token id of one of WORDS."""
    return FIRST_WORD_ID + WORDS.index(piece)


def test_pieces_become_bytes() -> None:
    """U+2581 is a space, <0xNN> a raw byte, a control token nothing; ids that pad the embedding are nothing too."""
    assert PIECES.bytes_of(word_id("\u2581the")) == b" the"
    assert PIECES.bytes_of(byte_ids("\n")[0]) == b"\n"
    assert PIECES.bytes_of(BOS_ID) == b""
    assert PIECES.bytes_of(VOCAB_SIZE + 5) == b""
    assert PIECES.control_ids == {0, BOS_ID, EOS_ID}


def test_a_normal_piece_that_looks_like_a_byte_is_text() -> None:
    """The kind decides, not the spelling."""
    pieces = TokenPieces.from_vocab([("<0x41>", PieceKind.NORMAL), ("<0x41>", PieceKind.BYTE)])
    assert [pieces.bytes_of(0), pieces.bytes_of(1)] == [b"<0x41>", b"A"]


def test_a_malformed_byte_piece_is_refused() -> None:
    """A vocabulary that cannot be decoded is found at load time."""
    with pytest.raises(ValueError, match="<0x4>"):
        TokenPieces.from_vocab([("<0x4>", PieceKind.BYTE)])


def test_a_character_is_released_by_its_last_byte() -> None:
    """An emoji of four byte tokens comes out whole with the fourth."""
    assert texts_of(byte_ids("\U0001f600")) == ["", "", "", "\U0001f600", ""]


def test_bytes_that_cannot_become_a_character_are_replaced_at_once() -> None:
    """An emoji broken off by a word: U+FFFD comes with the word that proves it."""
    broken = byte_ids("\U0001f600")[:2]
    assert texts_of([*broken, word_id("x")]) == ["", "", "\ufffdx", ""]


def test_an_incomplete_character_is_flushed_as_a_replacement() -> None:
    """Nothing that a token contributed is lost at the end."""
    assert texts_of(byte_ids("\U0001f600")[:3]) == ["", "", "", "\ufffd"]


def test_only_the_first_space_is_stripped() -> None:
    """The tokenizer's dummy prefix is one space before the first piece, wherever control tokens stand."""
    ids = [BOS_ID, word_id("\u2581the"), word_id("\u2581the")]
    assert "".join(texts_of(ids, strip_leading_space=True)) == "the the"
    assert "".join(texts_of(ids)) == " the the"
    assert "".join(texts_of([word_id("x"), word_id("\u2581a")], strip_leading_space=True)) == "x a"
    assert "".join(texts_of([word_id("\u2581"), word_id("\u2581")], strip_leading_space=True)) == " "


@given(st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=40), st.booleans())
def test_texts_joined_are_the_full_decode(token_ids: list[int], strip_leading_space: bool) -> None:
    """For any ids, also those that are no UTF-8: joined texts == bytes.decode("utf-8", "replace")."""
    content = b"".join(PIECES.bytes_of(token_id) for token_id in token_ids)
    if strip_leading_space:
        content = content.removeprefix(b" ")
    joined = "".join(texts_of(token_ids, strip_leading_space=strip_leading_space))
    assert joined == content.decode("utf-8", "replace")


@given(st.text(max_size=20))
def test_valid_text_is_never_replaced_on_the_way(text: str) -> None:
    """Each prefix of the output is a prefix of the text: no character is ever split."""
    released = ""
    for piece in texts_of(byte_ids(text)):
        released += piece
        assert text.startswith(released)
    assert released == text
