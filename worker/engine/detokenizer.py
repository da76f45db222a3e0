"""Token ids to text, one token at a time, never splitting a character. No torch."""

from __future__ import annotations

import codecs
import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class PieceKind(enum.Enum):
    """What a vocabulary entry stands for."""

    NORMAL = "normal"  # text, with U+2581 for the space
    BYTE = "byte"  # "<0xNN>": one raw byte of UTF-8
    CONTROL = "control"  # <unk>, <s>, </s> and the like: no text


@dataclass(frozen=True, slots=True)
class TokenPieces:
    """The bytes of every token; shared by all sequences.

    Attributes:
        pieces: by token id; b"" for control tokens.
        control_ids: tokens that have no text.
    """

    pieces: tuple[bytes, ...]
    control_ids: frozenset[int]

    @classmethod
    def from_vocab(cls, vocab: Iterable[tuple[str, PieceKind]]) -> TokenPieces:
        """Build the table from a vocabulary in id order. Raises ValueError for a malformed byte piece."""
        entries = tuple(vocab)
        control_ids = frozenset(id_ for id_, (_, kind) in enumerate(entries) if kind is PieceKind.CONTROL)
        return cls(tuple(_to_bytes(piece, kind) for piece, kind in entries), control_ids)

    def bytes_of(self, token_id: int) -> bytes:
        """The token's bytes; none for ids past the vocabulary (rows that pad the model's embedding)."""
        return self.pieces[token_id] if token_id < len(self.pieces) else b""

    def text_of(self, token_id: int) -> str:
        """The token's text by itself; a character that it only begins or ends appears as U+FFFD."""
        return self.bytes_of(token_id).decode(errors="replace")


class Detokenizer:
    """Decodes the tokens of one choice; the texts returned, joined, are the decoding of all bytes.

    Bytes of an incomplete character are held back until it is complete, or until it can no longer become one:
    then they are U+FFFD, as with Python's error handler "replace".
    """

    def __init__(self, pieces: TokenPieces, *, strip_leading_space: bool) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strips_next_space = strip_leading_space

    def push(self, token_id: int) -> str:
        """The text that this token completes; may be ''."""
        piece = self._pieces.bytes_of(token_id)
        if piece and self._strips_next_space:
            piece = piece.removeprefix(b" ")
            self._strips_next_space = False
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """What is still held back, at the end of the choice: '' or U+FFFD."""
        return self._decoder.decode(b"", final=True)


def _to_bytes(piece: str, kind: PieceKind) -> bytes:
    if kind is PieceKind.CONTROL:
        return b""
    if kind is PieceKind.NORMAL:
        return piece.replace("\u2581", " ").encode()
    match = _BYTE_PIECE.fullmatch(piece)
    if match is None:
        raise ValueError(f"byte piece {piece!r} is not of the form <0xNN>")
    return bytes([int(match[1], 16)])
