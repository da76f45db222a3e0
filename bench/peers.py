"""What a user would run instead, on the same machine: transformers' `generate` over the same folder.

    python -m bench.peers --folders /tmp/llama-7b-int8 /tmp/llama-7b-nf4 --batches 1 8 32 --out peers.json

Greedy, prompts of 128 tokens, no EOS; decode tokens/s by the difference between a run of --new tokens and one of a
quarter of them, so that the prompt is left out. Compare with `tokens per s` of bench/engine.py, run beside it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.device import choose_device, device_name, synchronize
from bench.models import forget_models
from bench.report import Report

PROMPT = 128
Generate = Callable[[int, int], None]  # sequences, new tokens of each


def by_transformers(folder: Path, device: torch.device) -> Generate:
    """As its documentation says to load and run such a folder."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, device_map={"": device})

    def generate(batch: int, new: int) -> None:
        ids = torch.randint(3, model.config.vocab_size, (batch, PROMPT), device=device)
        mask = torch.ones_like(ids)
        found = model.generate(ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        assert found.shape == (batch, PROMPT + new)

    return generate


def decode_rate(generate: Generate, batch: int, new: int, device: torch.device) -> float:
    """Tokens a second of all sequences; the first run is not counted."""
    seconds = []
    for length in (2, new // 4, new):
        synchronize(device)
        begun = time.perf_counter()
        generate(batch, length)
        synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return batch * (new - new // 4) / (seconds[2] - seconds[1])


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--folders", nargs="+", type=Path, required=True, help="model folders, as bench/make_model.py writes them")
    add("--batches", nargs="+", type=int, default=[1, 8, 32])
    add("--new", type=int, default=64, help="tokens of an answer")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto")
    add("--out", type=Path, required=True, help="JSON; the tables go beside it, as Markdown")
    options = parser.parse_args()
    device = choose_device(options.device)
    report = Report(options.out, device=device_name(device), torch=torch.__version__)
    for folder in options.folders:
        forget_models()
        generate = by_transformers(folder, device)
        for batch in options.batches:
            rate = decode_rate(generate, batch, options.new, device)
            report.row("transformers generate", {"folder": folder.name, "batch": batch, "tokens_per_s": rate})
        del generate


if __name__ == "__main__":
    main()
