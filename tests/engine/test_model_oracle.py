"""Greedy generation against transformers: the same ids, for every storage format and both kinds of attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.oracle import Shape, dequantized, differing, greedy, oracle_greedy, random_prompts
from worker.engine.batch import SequenceSlice
from worker.engine.config import Quantization
from worker.engine.loader import load_model

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
LENGTHS = [3, 16, 37, 130] * 16  # 64 prompts; 130 spans two tiles of keys
NUM_NEW = 64
TIE_GAP = 1e-3  # of the range of the logits


def read_oracle(folder: Path) -> Any:
    """What transformers makes of an unquantized folder, computing in float32."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_unquantized_float32_gives_the_same_ids_as_transformers(full_folder: Path, shape: Shape) -> None:
    """64 prompts, 64 tokens each, not one id differs."""
    prompts = random_prompts(shape.vocab_size, LENGTHS, seed=13)  # the oracle has no tie of two logits with these

    ours = greedy(load_model(full_folder, Quantization.NONE, CPU, kv_blocks=900), prompts, NUM_NEW)
    theirs = oracle_greedy(read_oracle(full_folder), prompts, NUM_NEW)

    assert torch.equal(ours.token_ids, theirs.token_ids)
    assert torch.allclose(ours.logits, theirs.logits, atol=1e-3)


@pytest.mark.parametrize("quantization", [Quantization.INT8, Quantization.NF4, Quantization.NF4_DQ])
def test_quantized_gives_the_ids_of_the_dequantized_weights(
    half_folder: Path, shape: Shape, quantization: Quantization
) -> None:
    """The oracle holds in float32 what the bytes stand for; ids may part only at ties, in at most 2 % of sequences."""
    prompts = random_prompts(shape.vocab_size, LENGTHS, seed=4)

    ours = greedy(load_model(half_folder, quantization, CPU, kv_blocks=900), prompts, NUM_NEW)
    oracle = dequantized(read_oracle(half_folder), quantization.value)
    ties, faults = differing(ours, oracle_greedy(oracle, prompts, NUM_NEW), TIE_GAP)

    assert faults == 0
    assert ties <= 0.02 * len(prompts)


def test_int8_logits_stay_near_the_unquantized_ones(
    half_folder: Path, shape: Shape, record_property: Callable[[str, object], None]
) -> None:
    """The error is in the bounds of 8 bits; that of bitsandbytes' own forward is recorded beside it."""
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    prompt = random_prompts(shape.vocab_size, [200], seed=5)[0]
    ids = torch.tensor([prompt])
    unquantized = read_oracle(half_folder)
    llm_int8 = LlamaForCausalLM.from_pretrained(
        half_folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu"
    )
    ours = load_model(half_folder, Quantization.INT8, CPU, kv_blocks=20)

    with torch.inference_mode():
        exact = unquantized(ids).logits[0, -1]
        theirs = llm_int8(ids).logits[0, -1].float()
    mine = ours.forward([SequenceSlice(prompt, 0, list(range(13)), True)])[0]
    error = float((mine - exact).norm() / exact.norm())
    their_error = float((theirs - exact).norm() / exact.norm())
    record_property("relative error of the logits, ours", error)
    record_property("relative error of the logits, LLM.int8", their_error)
    print(f"relative error of int8 logits, {shape.name}: ours {error:.4f}, LLM.int8 {their_error:.4f}")

    assert error < 0.1
    assert error < 1.5 * their_error
