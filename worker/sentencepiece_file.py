"""Reads a SentencePiece `tokenizer.model`: the pieces with score and type, and how text is prepared.

The file is one protobuf message, and this reads its wire format itself: the generated module inside the sentencepiece
package refuses every protobuf runtime older than the one it was generated with.
Source: sentencepiece_model.proto of SentencePiece 0.2 (field numbers below), and protobuf's encoding guide.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from worker.model_folder import ModelFolderError


class PieceType(IntEnum):
    """SentencePiece.Type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class ScoredPiece:
    """One entry; for BPE a higher score is an earlier merge."""

    text: str
    score: float
    type: PieceType


@dataclass(frozen=True, slots=True)
class SentencePieceFile:
    """What of the file decides how text is encoded; the defaults are the format's own."""

    pieces: tuple[ScoredPiece, ...]
    is_bpe: bool
    has_character_map: bool  # normalization other than identity
    adds_dummy_prefix: bool
    removes_extra_whitespaces: bool
    escapes_whitespaces: bool
    space_is_suffix: bool


_BPE = 2  # TrainerSpec.ModelType
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_Field = tuple[int, int | bytes]


def read_sentencepiece_file(path: Path) -> SentencePieceFile:
    """Raises ModelFolderError for a file that is not a SentencePiece model."""
    try:
        return _parse(path.read_bytes())
    except (ValueError, IndexError, KeyError, struct.error) as error:
        raise ModelFolderError(f"{path} is not a SentencePiece model: {error}") from error


def _parse(serialized: bytes) -> SentencePieceFile:
    pieces: list[ScoredPiece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(serialized):
        if number == 1:  # ModelProto.pieces
            pieces.append(_parse_piece(_bytes(value)))
        elif number == 2:  # ModelProto.trainer_spec
            trainer = dict(_fields(_bytes(value)))
        elif number == 3:  # ModelProto.normalizer_spec
            normalizer = dict(_fields(_bytes(value)))
    if not pieces:
        raise ValueError("it has no pieces")
    return SentencePieceFile(
        pieces=tuple(pieces),
        is_bpe=trainer.get(3) == _BPE,
        has_character_map=bool(normalizer.get(2)),
        adds_dummy_prefix=bool(normalizer.get(3, 1)),
        removes_extra_whitespaces=bool(normalizer.get(4, 1)),
        escapes_whitespaces=bool(normalizer.get(5, 1)),
        space_is_suffix=bool(trainer.get(24, 0)),
    )


def _parse_piece(serialized: bytes) -> ScoredPiece:
    fields = dict(_fields(serialized))
    (score,) = struct.unpack("<f", _bytes(fields.get(2, b"\0\0\0\0")))
    type_ = fields.get(3, PieceType.NORMAL)
    if not isinstance(type_, int):
        raise ValueError("a piece's type has the wrong wire type")
    return ScoredPiece(_bytes(fields[1]).decode(), score, PieceType(type_))


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a field has the wrong wire type")
    return value


def _fields(message: bytes) -> Iterator[_Field]:
    """The fields of one message in file order: its number, and an int (varint) or the raw bytes (all else)."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire_type = tag & 7
        if wire_type == _VARINT:
            number, at = _varint(message, at)
            yield tag >> 3, number
            continue
        if wire_type == _BYTES:
            size, at = _varint(message, at)
        elif wire_type == _FIXED32:
            size = 4
        elif wire_type == _FIXED64:
            size = 8
        else:
            raise ValueError(f"wire type {wire_type} at byte {at}")
        if at + size > len(message):
            raise ValueError(f"cut off at byte {len(message)}")
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, seven bits a byte, low bits first, and where it ends."""
    number = shift = 0
    while True:
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
