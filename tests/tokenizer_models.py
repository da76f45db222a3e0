"""Small SentencePiece models with Llama 2's trainer settings, trained on text that is generated here."""

import functools
import io
import json
import random
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import sentencepiece

SPACE = "\u2581"
_ONSETS = ("b", "c", "d", "f", "g", "h", "l", "m", "n", "p", "r", "s", "t", "th", "st", "tr", "w")
_VOWELS = ("a", "e", "i", "o", "u", "ea", "ou", "é", "ü")
_CODAS = ("", "", "n", "r", "s", "t", "ng", "ck", "ll")
_OTHER_SCRIPTS = ("привет мир", "日本語の文字", "שלום עולם", "नमस्ते", "🙂🙃 🚀", "čšž ñ œ")
_CODE = (
    "def f(x):",
    "    return x + 1",
    "        if x == 12:",
    "\tcontinue",
    "{'key': [0, 1]}",
    "# ====",
    "<s> </s> [INST]",
)


@functools.cache
def train_llama2_like(vocab_size: int = 900, user_defined: tuple[str, ...] = ()) -> bytes:
    """A serialized model: BPE, identity normalization, dummy prefix, byte fallback, split digits, ids 0 1 2 as Llama.

    The same arguments give the same bytes. `vocab_size` counts the 259 control and byte pieces.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_lines(random.Random(2023)),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        byte_fallback=True,
        split_digits=True,
        character_coverage=0.9999,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        user_defined_symbols=list(user_defined),
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


@functools.cache
def train_with_equal_space_runs(vocab_size: int = 900) -> bytes:
    """The same model with one score for every run of spaces, the lowest, as in the vocabulary that Meta published."""
    serialized = train_llama2_like(vocab_size)
    lowest = struct.pack("<f", -1e9)
    for length in range(1, 17):
        run = (SPACE * length).encode()
        piece = b"\x0a" + bytes([len(run)]) + run + b"\x15"  # field 1, the text; then field 2, the score
        start = serialized.find(piece)
        if start >= 0:
            start += len(piece)
            serialized = serialized[:start] + lowest + serialized[start + 4 :]
    return serialized


def write_model_folder(folder: Path, serialized: bytes, **config: object) -> Path:
    """A Hugging Face folder as far as the bundle reads one; keyword arguments override config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(serialized)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=serialized).piece_size()
    write_json(
        folder / "config.json",
        {
            "model_type": "llama",
            "vocab_size": pieces,
            "max_position_embeddings": 256,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **config,
        },
    )
    return folder


def write_json(path: Path, document: Mapping[str, object]) -> None:
    """Write one of the folder's JSON files."""
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def _lines(source: random.Random) -> Iterator[str]:
    """3,000 lines: sentences of made-up words with digits and punctuation, indented code, and other scripts."""
    words = [
        "".join(source.choice(part) for _ in range(source.randint(1, 3)) for part in (_ONSETS, _VOWELS, _CODAS))
        for _ in range(400)
    ]
    for _ in range(3000):
        draw = source.random()
        if draw < 0.2:
            yield " " * source.choice((2, 4, 8, 16)) + source.choice(_CODE)
        elif draw < 0.25:
            yield source.choice(_OTHER_SCRIPTS)
        else:
            count = source.randint(3, 12)
            line = " ".join(source.choices(words, k=count))
            yield f"{line.capitalize()}{source.choice(('.', '?', '!', ', 1984', '  — '))}"
