"""Trains the demo model's tokenizer: SentencePiece with the trainer settings of Llama 2, on 1,280 pieces.

    python -m training.tokenizer

writes tokenizer.model and tokenizer_config.json into the demo model's folder. The same corpus gives the same file.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import sentencepiece

from training.corpus import draw_training

MODEL_DIR = Path(__file__).parent.parent / "herd" / "demo_model"
VOCAB_SIZE = 1280
NUM_DIALOGUES = 120_000
SEED = 20_000

_ALWAYS_PIECES = "".join(map(chr, range(33, 127))) + "äöüßÄÖÜéèêëàâçîïôûùñáíóú¿¡°€–—‘’“”…"
_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": None,
    "legacy": False,
    "clean_up_tokenization_spaces": False,
    "sp_model_kwargs": {},
    "model_max_length": 1024,
}


def train(model_dir: Path = MODEL_DIR) -> None:
    """Train on the training mixture and write both files."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_sentences(),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        byte_fallback=True,
        character_coverage=0.99995,
        required_chars=_ALWAYS_PIECES,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        unk_surface=" ⁇ ",
        num_threads=1,
        minloglevel=1,
    )
    model_dir.mkdir(parents=True, exist_ok=True)
    (model_dir / "tokenizer.model").write_bytes(model.getvalue())
    (model_dir / "tokenizer_config.json").write_text(json.dumps(_CONFIG, indent=2) + "\n", encoding="utf-8")


def _sentences() -> Iterator[str]:
    rng = Random(SEED)
    for _ in range(NUM_DIALOGUES):
        dialogue = draw_training(rng)
        if dialogue.system:
            yield from f"[INST] <<SYS>>\n{dialogue.system}\n<</SYS>>".split("\n")
        for turn in dialogue.turns:
            yield f"[INST] {turn.user} [/INST] {turn.answer}"


if __name__ == "__main__":
    train()
