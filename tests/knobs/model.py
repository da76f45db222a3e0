"""A random Llama with a real tokenizer, whose generation_config.json asks for something of everything."""

import json
import shutil
from pathlib import Path

import torch

from tests.engine.oracle import Shape, random_llama, save

DEMO_MODEL = Path(__file__).parents[2] / "herd" / "demo_model"
SHAPE = Shape("knobs", 128, 320, 2, 4, 4, 32, 1280)
DEFAULTS = {
    "do_sample": True,
    "temperature": 0.8,
    "top_k": 300,
    "top_p": 0.9,
    "min_p": 0.001,
    "typical_p": 0.97,
    "repetition_penalty": 1.2,
    "max_new_tokens": 12,
}
EOS_IDS = (2, 77)


def make_folder(folder: Path) -> Path:
    """Write it as a model is published."""
    save(random_llama(SHAPE, seed=5), folder, torch.float32)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(DEMO_MODEL / name, folder)
    asked = {"bos_token_id": 1, "eos_token_id": list(EOS_IDS), **DEFAULTS}
    (folder / "generation_config.json").write_text(json.dumps(asked))
    return folder
