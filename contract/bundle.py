"""The model bundle: all that a gateway must know of a model, published by a worker by content hash.

A bundle is canonical JSON (sorted keys, no blanks, UTF-8), so equal models give equal bytes and one digest on every
machine; it is not compressed, since zlib's output differs between its implementations. Llama 2's is 0.93 MB.
"""

import dataclasses
import enum
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar

VERSION = 1


class MalformedBundle(ValueError):
    """Bytes that are no bundle, or a bundle of a version that this program does not read."""


class PieceKind(enum.StrEnum):
    """What a vocabulary entry stands for."""

    NORMAL = "normal"  # text, with U+2581 for the space
    UNKNOWN = "unknown"  # what no other piece covers; byte pieces leave nothing to it
    CONTROL = "control"  # BOS, EOS, chat markers: no text, and no text becomes one
    BYTE = "byte"  # "<0xNN>": one byte of UTF-8
    USER_DEFINED = "user_defined"  # text that is always this one token


class Piece(NamedTuple):
    """One vocabulary entry; its place in `ModelBundle.pieces` is its id. An id without a piece is ("", CONTROL)."""

    text: str
    kind: PieceKind


class ChatFormatKind(enum.StrEnum):
    """How a dialog becomes a prompt."""

    LLAMA2 = "llama2"  # Meta's reference for Llama 2 chat
    JINJA = "jinja"  # the model's own template
    NONE = "none"  # a base model: prompts only


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """The dialog format; `template` is jinja source, and empty unless `kind` is JINJA."""

    kind: ChatFormatKind
    template: str = ""


SAMPLING_RANGES: Mapping[str, tuple[float, float, bool]] = {  # low, high, whether the low end is excluded
    "temperature": (0, 100, False),
    "top_p": (0, 1, True),
    "min_p": (0, 1, False),
    "typical_p": (0, 1, True),
    "repetition_penalty": (0, 100, True),
}


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What the model's generation_config.json asks for; None where it says nothing."""

    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    max_length: int | None = None  # prompt and new tokens together


@dataclass(frozen=True, slots=True)
class Architecture:
    """The model's shape, as ModelService reports it."""

    model_type: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    num_parameters: int | None = None  # None: not computable from the configuration


@dataclass(frozen=True, slots=True)
class ModelBundle:
    """Tokenizer, special ids, chat format and defaults of one model.

    Attributes:
        pieces: the vocabulary in id order.
        merges: BPE merges as id pairs (left, right), best first. The result is the piece left + right.
        bos_id: begins every prompt.
        eos_id: ends a finished turn inside a prompt.
        unk_id: None where the vocabulary has no unknown piece.
        eos_ids: tokens that end a generation.
        context_length: tokens of prompt and answer together.
        vocab_size: width of the logits; may exceed len(pieces), as rows are padded.
        quantization: how this worker holds the weights, as "int8", "nf4", "nf4-dq" or "fp16".
    """

    pieces: tuple[Piece, ...]
    merges: tuple[tuple[int, int], ...]
    bos_id: int
    eos_id: int
    unk_id: int | None
    eos_ids: tuple[int, ...]
    context_length: int
    vocab_size: int
    chat_format: ChatFormat
    defaults: GenerationDefaults
    quantization: str
    architecture: Architecture

    @property
    def control_ids(self) -> dict[str, int]:
        """Every control token by its text: BOS, EOS, and the markers that a fine-tune added."""
        return {p.text: id_ for id_, p in enumerate(self.pieces) if p.kind is PieceKind.CONTROL and p.text}

    @property
    def digest(self) -> str:
        """The name under which the bundle is published. Serializes the bundle: 0.1 s for Llama 2."""
        return digest_of(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Canonical JSON; the same bundle gives the same bytes on every machine."""
        kinds = {
            kind.value: [id_ for id_, piece in enumerate(self.pieces) if piece.kind is kind]
            for kind in PieceKind
            if kind is not PieceKind.NORMAL
        }
        document = {
            "version": VERSION,
            "pieces": [piece.text for piece in self.pieces],
            "kinds": {kind: ids for kind, ids in kinds.items() if ids},  # an id that is not listed is NORMAL
            "merges": [id_ for pair in self.merges for id_ in pair],  # flat: left, right, left, right
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "unk_id": self.unk_id,
            "eos_ids": list(self.eos_ids),
            "context_length": self.context_length,
            "vocab_size": self.vocab_size,
            "chat_format": dataclasses.asdict(self.chat_format),
            "defaults": _present(self.defaults),
            "quantization": self.quantization,
            "architecture": _present(self.architecture),
        }
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
        return text.encode()

    @classmethod
    def from_bytes(cls, payload: bytes) -> Self:
        """Read a bundle; unknown fields are ignored. Raises MalformedBundle."""
        try:
            document = json.loads(payload)
            version = document["version"]
            if version != VERSION:
                raise MalformedBundle(f"bundle has version {version}; this program reads version {VERSION}")
            bundle = cls._from_document(document)
            bundle._check_ids()
            bundle._check_defaults()
        except MalformedBundle:
            raise
        except Exception as error:  # bytes can break a parser in any way there is
            raise MalformedBundle(f"not a model bundle: {type(error).__name__}: {error}") from error
        return bundle

    @classmethod
    def _from_document(cls, document: Mapping[str, Any]) -> Self:
        chat_format = _read(ChatFormat, document["chat_format"])
        return cls(
            pieces=_read_pieces(document["pieces"], document["kinds"]),
            merges=_read_merges(document["merges"]),
            bos_id=document["bos_id"],
            eos_id=document["eos_id"],
            unk_id=document["unk_id"],
            eos_ids=tuple(document["eos_ids"]),
            context_length=document["context_length"],
            vocab_size=document["vocab_size"],
            chat_format=dataclasses.replace(chat_format, kind=ChatFormatKind(chat_format.kind)),
            defaults=_read(GenerationDefaults, document["defaults"]),
            quantization=document["quantization"],
            architecture=_read(Architecture, document["architecture"]),
        )

    def _check_ids(self) -> None:
        """Raises MalformedBundle for an id that names no piece (later code indexes `pieces` by it), or a wrong one."""
        named = {self.bos_id, self.eos_id, *self.eos_ids, *(id_ for pair in self.merges for id_ in pair)}
        if self.unk_id is not None:
            named.add(self.unk_id)
        beyond = sorted(id_ for id_ in named if not 0 <= id_ < len(self.pieces))
        if beyond:
            raise MalformedBundle(f"bundle names token id {beyond[0]}; its vocabulary has {len(self.pieces)} pieces")
        if len(self.pieces) > self.vocab_size:
            raise MalformedBundle(f"bundle has {len(self.pieces)} pieces; the logits have {self.vocab_size}")
        for name, id_ in (("BOS", self.bos_id), ("EOS", self.eos_id)):
            if self.pieces[id_].kind is not PieceKind.CONTROL:
                raise MalformedBundle(
                    f"bundle has {name} id {id_}, which is {self.pieces[id_].text!r}, no control token"
                )

    def _check_defaults(self) -> None:
        """Raises MalformedBundle for a default that a request could not ask for."""
        for name, (low, high, over_low) in SAMPLING_RANGES.items():
            value = getattr(self.defaults, name)
            if value is not None and not (low <= value <= high and not (over_low and value == low)):
                bounds = f"over {low}, at most {high}" if over_low else f"{low} to {high}"
                raise MalformedBundle(f"generation_config.json has {name} {value}; the range is {bounds}")
        for name in ("max_new_tokens", "max_length"):
            if (bound := getattr(self.defaults, name)) is not None and bound < 1:
                raise MalformedBundle(f"generation_config.json has {name} {bound}; at least 1")
        if (self.defaults.top_k or 0) < 0:
            raise MalformedBundle(f"generation_config.json has top_k {self.defaults.top_k}; 0 keeps all")


def digest_of(payload: bytes) -> str:
    """The digest of a bundle as published: SHA-256 of its bytes, in hex."""
    return hashlib.sha256(payload).hexdigest()


_Record = TypeVar("_Record", ChatFormat, GenerationDefaults, Architecture)


def _present(record: GenerationDefaults | Architecture) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(record).items() if value is not None}


def _read(kind: type[_Record], fields: Mapping[str, Any]) -> _Record:
    known = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in fields.items() if name in known})


def _read_pieces(texts: Sequence[str], ids_by_kind: Mapping[str, Sequence[int]]) -> tuple[Piece, ...]:
    kinds = [PieceKind.NORMAL] * len(texts)
    for name, ids in ids_by_kind.items():
        kind = PieceKind(name)
        for id_ in ids:
            kinds[id_] = kind
    return tuple(map(Piece, texts, kinds))


def _read_merges(flat: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple(zip(flat[::2], flat[1::2], strict=True))
