"""The vocabulary of a model folder: its pieces in id order, and the BPE merges that rebuild its encoding.

`tokenizer.model` is preferred to `tokenizer.json`. The merges rebuilt from it encode as SentencePiece does
(tests/service/test_tokenizer.py); a `tokenizer.json` holds what some converter made of it. transformers 5.23 puts the
merge of two spaces first: under Llama 2's vocabulary that changed the ids of 1,797 of 2,000 made-up texts of indented
code. Tokens that a fine-tune added are read from the JSON files either way.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.bundle import Piece, PieceKind
from worker.model_folder import ModelFolderError, read_json
from worker.sentencepiece_file import PieceType, ScoredPiece, SentencePieceFile, read_sentencepiece_file

_SPACE = "\u2581"
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_KINDS = {
    PieceType.NORMAL: PieceKind.NORMAL,
    PieceType.UNKNOWN: PieceKind.UNKNOWN,
    PieceType.CONTROL: PieceKind.CONTROL,
    PieceType.USER_DEFINED: PieceKind.USER_DEFINED,
    PieceType.BYTE: PieceKind.BYTE,
}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Pieces in id order; merges as id pairs (left, right), best first, over normal pieces only."""

    pieces: tuple[Piece, ...]
    merges: tuple[tuple[int, int], ...]


def read_vocabulary(folder: Path, *, vocab_size: int) -> Vocabulary:
    """Read the folder's vocabulary with its added tokens.

    Args:
        vocab_size: rows of the model's embedding; an added token beyond them is left out and stays text.

    Raises:
        ModelFolderError: there is no vocabulary, or one that text of this project's rules cannot be encoded with.
    """
    if (folder / "tokenizer.model").is_file():
        base = _from_sentencepiece(read_sentencepiece_file(folder / "tokenizer.model"))
    elif (folder / "tokenizer.json").is_file():
        base = _from_tokenizer_json(read_json(folder, "tokenizer.json"))
    else:
        raise ModelFolderError(f"{folder} has neither tokenizer.model nor tokenizer.json")
    pieces = _with_added(base.pieces, _added_tokens(folder), vocab_size)
    if len(pieces) > vocab_size:
        raise ModelFolderError(f"the vocabulary has {len(pieces)} pieces; the model's embedding has {vocab_size}")
    if sum(piece.kind is PieceKind.BYTE for piece in pieces) != 256:
        raise ModelFolderError("the vocabulary lacks byte pieces; only Llama 2's kind, with byte fallback, is served")
    return Vocabulary(pieces, _between_normal(base.merges, pieces))


def _from_sentencepiece(file: SentencePieceFile) -> Vocabulary:
    for is_wrong, what in (
        (not file.is_bpe, "is not BPE"),
        (file.has_character_map, "rewrites characters before encoding"),
        (not file.adds_dummy_prefix, "puts no space before the text"),
        (file.removes_extra_whitespaces, "removes spaces"),
        (not file.escapes_whitespaces, "keeps spaces as they are"),
        (file.space_is_suffix, "puts spaces at the end of words"),
        (any(piece.type is PieceType.UNUSED for piece in file.pieces), "has unused pieces"),
    ):
        if is_wrong:
            raise ModelFolderError(f"tokenizer.model {what}; only Llama 2's kind is served")
    pieces = tuple(Piece(piece.text, _KINDS[piece.type]) for piece in file.pieces)
    return Vocabulary(pieces, _merges_from_scores(file.pieces))


def _merges_from_scores(pieces: Sequence[ScoredPiece]) -> tuple[tuple[int, int], ...]:
    """All pairs of pieces that make a piece, by the score of what they make, best first.

    SentencePiece merges the pair with the best score, and of equals the leftmost. A merge list knows no equals, so
    of equal scores the pair with the longer left side goes first: runs of one character then grow from the left, as
    they do there. Llama 2 needs that: all its runs of spaces share one score. Other ties (pieces that were appended
    to a vocabulary with one score) are not reproduced in every case.
    """
    normal = {piece.text: id_ for id_, piece in enumerate(pieces) if piece.type is PieceType.NORMAL}
    found: list[tuple[float, int, int, tuple[int, int]]] = []
    for text, id_ in normal.items():
        for split in range(1, len(text)):
            left, right = normal.get(text[:split]), normal.get(text[split:])
            if left is not None and right is not None:
                found.append((-pieces[id_].score, -split, -len(text), (left, right)))
    found.sort(key=lambda merge: merge[:3])
    return tuple(pair for *_, pair in found)


def _from_tokenizer_json(document: Mapping[str, Any]) -> Vocabulary:
    model = document.get("model", {})
    if model.get("type", "BPE") != "BPE" or not model.get("byte_fallback", False):
        raise ModelFolderError("tokenizer.json is not BPE with byte fallback; only Llama 2's kind is served")
    ids: dict[str, int] = model.get("vocab", {})
    texts = sorted(ids, key=ids.__getitem__)
    if [ids[text] for text in texts] != list(range(len(texts))):
        raise ModelFolderError("the ids of tokenizer.json are not 0, 1, 2, …")
    unknown = model.get("unk_token")
    pieces = tuple(Piece(text, _kind_by_text(text, unknown)) for text in texts)
    try:
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        return Vocabulary(pieces, tuple((ids[left], ids[right]) for left, right in pairs))
    except (KeyError, ValueError) as error:
        raise ModelFolderError(f"a merge of tokenizer.json is no pair of pieces: {error}") from error


def _kind_by_text(text: str, unknown: str | None) -> PieceKind:
    if text == unknown:
        return PieceKind.UNKNOWN
    return PieceKind.BYTE if _BYTE_PIECE.fullmatch(text) else PieceKind.NORMAL


def _added_tokens(folder: Path) -> Iterator[tuple[int, str, bool]]:
    """(id, text, is it special) of every added token the folder's files name."""
    for text, id_ in read_json(folder, "added_tokens.json").items():
        yield id_, text, True
    for token in read_json(folder, "tokenizer.json").get("added_tokens", []):
        yield token["id"], token["content"], token["special"]
    for id_, token in read_json(folder, "tokenizer_config.json").get("added_tokens_decoder", {}).items():
        yield int(id_), token["content"], token.get("special", False)


def _with_added(base: tuple[Piece, ...], added: Iterator[tuple[int, str, bool]], vocab_size: int) -> tuple[Piece, ...]:
    """The pieces with added tokens in their places; an id that nobody names is ("", CONTROL)."""
    pieces = dict(enumerate(base))
    for id_, text, is_special in added:
        if id_ >= vocab_size:
            continue
        if id_ < len(base) and pieces[id_].text != text:
            raise ModelFolderError(f"added token {text!r} claims id {id_}, which is {pieces[id_].text!r}")
        if id_ >= len(base):
            # Text reaches a user-defined piece after its spaces are replaced.
            user_defined = Piece(text.replace(" ", _SPACE), PieceKind.USER_DEFINED)
            pieces[id_] = Piece(text, PieceKind.CONTROL) if is_special else user_defined
        elif is_special and pieces[id_].kind is PieceKind.NORMAL:
            pieces[id_] = Piece(text, PieceKind.CONTROL)
    return tuple(pieces.get(id_, Piece("", PieceKind.CONTROL)) for id_ in range(max(pieces) + 1))


def _between_normal(merges: Sequence[tuple[int, int]], pieces: Sequence[Piece]) -> tuple[tuple[int, int], ...]:
    """The merges whose sides and result are normal pieces: nothing else is ever built from characters."""
    normal = {piece.text for piece in pieces if piece.kind is PieceKind.NORMAL}
    return tuple(
        (left, right)
        for left, right in merges
        if {pieces[left].text, pieces[right].text, pieces[left].text + pieces[right].text} <= normal
    )
