"""Prefill with activations in int8: what it costs in exactness, and where it is refused. On the CPU, in plain torch."""

from __future__ import annotations

import pytest
import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from herd.up import DEMO_MODEL
from tests.engine.oracle import block_tables, greedy
from tests.engine.rounded import ROUNDED, rounded
from worker.engine import loader
from worker.engine.batch import SequenceSlice
from worker.engine.checkpoint import Checkpoint
from worker.engine.config import ActivationFormat, LlamaConfig, Quantization, UnsupportedSetting
from worker.engine.kernels.build import KernelBuildError
from worker.engine.loader import FolderSource, build_model, load_model, load_weights
from worker.engine.model import LlamaModel
from worker.engine.operators import PLAIN, Operators

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
PROMPTS = (
    "Count to 150",
    "What is the capital of Peru? What is 38 + 47? Spell Mississippi",
    "Tell me a story about a dragon named Rex, and what happens if a worker dies",
)
MEAN_LOGITS_ERROR, MAX_LOGITS_ERROR = 5e-2, 0.15  # relative, of a row of logits


def demo_model(operators: Operators) -> LlamaModel:
    """The demo model with int8 weights."""
    config = LlamaConfig.from_folder(DEMO_MODEL)
    with Checkpoint(DEMO_MODEL) as checkpoint:
        source = FolderSource(checkpoint, config, Quantization.INT8, CPU)
        weights = load_weights(source, config, 1 << 30, lambda _: None, operators)
    return build_model(config, weights, kv_blocks=60, kv_bytes=None, block_size=16, operators=operators)


def test_the_demo_model_says_nearly_the_same() -> None:
    """After prompts and their answers in one prefill: how far off each row of logits is, and the best token."""
    exact, approximate = demo_model(PLAIN), demo_model(ROUNDED)
    text = SentencePieceProcessor(model_file=str(DEMO_MODEL / "tokenizer.model"))
    prompts = [[text.bos_id(), *text.encode(f"[INST] {prompt} [/INST]")] for prompt in PROMPTS]
    answers = greedy(exact, prompts, 40).token_ids
    found: list[list[Tensor]] = [[], []]
    for prompt, answer in zip(prompts, answers.tolist(), strict=True):
        tokens = [*prompt, *answer[: answer.index(text.eos_id()) if text.eos_id() in answer else None]]
        step = SequenceSlice(tokens, 0, block_tables(exact, [len(tokens)])[0], False, wants_all_logits=True)
        for rows, model in zip(found, (exact, approximate), strict=True):
            rows.append(model.forward([step]))
    theirs, ours = map(torch.cat, found)
    errors = (ours - theirs).norm(dim=1) / theirs.norm(dim=1)
    num_other = int((ours.argmax(1) != theirs.argmax(1)).sum())
    print(f"{num_other} of {len(errors)} ids differ; logits by {errors.mean():.1e}, {errors.max():.1e} at most")
    assert float(errors.mean()) < MEAN_LOGITS_ERROR
    assert float(errors.max()) < MAX_LOGITS_ERROR


@pytest.mark.parametrize(("outlier", "expected"), [(1.0, 0.009), (20.0, 0.046), (100.0, 0.23)])
def test_one_large_number_coarsens_all_others_of_its_row(outlier: float, expected: float) -> None:
    """The step is the largest number's / 127: what an outlier of so many deviations leaves of 4096 normal numbers."""
    x = torch.randn(8, 4096, generator=torch.Generator().manual_seed(1)).half()
    x[:, 7] = outlier
    codes, scale = rounded(x)
    held = codes.float() * scale[:, None]
    others = torch.arange(4096) != 7
    error = float((held - x.float())[:, others].norm() / x.float()[:, others].norm())
    print(f"an outlier of {outlier}: off by {error:.3f}")
    assert error == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("quantization", [Quantization.INT8, Quantization.NF4])
def test_it_is_refused_where_nothing_multiplies_it(quantization: Quantization) -> None:
    """Whoever asks for it learns that it would do nothing."""
    with pytest.raises(UnsupportedSetting, match=f"on the Hopper kernels, not {quantization.value} weights on cpu"):
        load_model(DEMO_MODEL, quantization, CPU, kv_blocks=2, prefill_activations=ActivationFormat.INT8)


def test_weights_of_four_bits_refuse_it_on_hopper_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The instruction takes 8 bits of both."""
    monkeypatch.setattr(loader, "hopper_takes", lambda *_: True)
    with pytest.raises(UnsupportedSetting, match="int8 activations need int8 weights"):
        load_model(DEMO_MODEL, Quantization.NF4, CPU, kv_blocks=2, prefill_activations=ActivationFormat.INT8)


def test_a_kernel_that_cannot_be_built_ends_the_worker_that_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain path, which takes over otherwise, would pass over the setting."""

    def refuse(*_: object, **told: object) -> None:
        assert told["prefill_activations"] is ActivationFormat.INT8
        raise KernelBuildError("no compiler")

    monkeypatch.setattr(loader, "hopper_takes", lambda *_: True)
    monkeypatch.setattr(loader, "load_hopper_model", refuse)
    with pytest.raises(UnsupportedSetting, match="no kernel multiplies int8 activations here: no compiler"):
        load_model(DEMO_MODEL, Quantization.INT8, CPU, kv_blocks=2, prefill_activations=ActivationFormat.INT8)
