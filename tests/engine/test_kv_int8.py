"""A KV cache in int8: what it costs in exactness, what it saves, and who is asked to hold it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from sentencepiece import SentencePieceProcessor

from herd.up import DEMO_MODEL
from tests.engine.oracle import block_tables, greedy, random_prompts
from worker.engine import loader
from worker.engine.batch import SequenceSlice
from worker.engine.config import KVFormat, LlamaConfig, Quantization
from worker.engine.kernels.build import KernelBuildError
from worker.engine.kv_tensors import Int8KVTensors, make_kv
from worker.engine.loader import load_model
from worker.engine.model import LlamaModel

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
NOTHING_FRESH = torch.tensor([], dtype=torch.int64)
MEAN_LOGITS_ERROR, MAX_LOGITS_ERROR = 1e-2, 4e-2  # relative, of a row of logits
MAX_OTHER_IDS = 1
QUESTIONS = (
    "Count to 150",
    "What is 38 + 47?",
    "What is the capital of Peru?",
    "Spell Mississippi",
    "Repeat after me: 🦙 loves 🐑!",
    "What happens if a worker dies?",
    "Sort 9, 3, 7, 1",
    "Tell me a story about a dragon named Rex",
    "Powers of two",
    "What day is 3 days after Friday?",
)


def demo_cache(kv_format: KVFormat, kv_bytes: int | None = None, kv_blocks: int | None = None) -> Int8KVTensors:
    """A cache of the demo model's shape."""
    config = LlamaConfig.from_folder(DEMO_MODEL)
    kv = make_kv(config, kv_format, CPU, kv_blocks=kv_blocks, kv_bytes=kv_bytes, block_size=16)
    assert isinstance(kv, Int8KVTensors)
    return kv


@pytest.fixture(scope="module")
def models() -> tuple[LlamaModel, LlamaModel]:
    """The demo model with a cache of floats, and with one of int8."""
    exact, rounded = (
        load_model(DEMO_MODEL, Quantization.NONE, CPU, kv_blocks=120, kv_format=kv_format)
        for kv_format in (KVFormat.FLOAT, KVFormat.INT8)
    )
    assert isinstance(exact, LlamaModel)
    assert isinstance(rounded, LlamaModel)
    return exact, rounded


def test_a_number_is_off_by_less_than_half_a_code() -> None:
    """Of the largest in its position and head, whatever the others are; a head of zeros stays zero."""
    kv = demo_cache(KVFormat.INT8, kv_blocks=3)
    shape = (20, *kv.keys[0].shape[2:])
    key, value = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    key *= torch.logspace(-6, 6, 20)[:, None, None]
    key[3, 0] = 0
    kv.write(0, key, value, torch.arange(20) + 16, torch.tensor([1, 2]))

    for held, wanted in zip(kv.read(0, torch.tensor([1, 2])), (key, value), strict=True):
        found = held.flatten(0, 1)
        assert ((found[:20] - wanted).abs() <= wanted.abs().amax(-1, keepdim=True) / 253).all()
        assert not found[20:].any(), "the rest of a fresh block is zero"


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_not_finite_stays_so_and_where_it_is(broken: float) -> None:
    """The engine ends such a sequence by its logits; a number made of it would go unnoticed."""
    kv = demo_cache(KVFormat.INT8, kv_blocks=1)
    key = torch.ones(2, *kv.keys[0].shape[2:])
    key[0, 0, 5] = broken
    kv.write(0, key, key, torch.arange(2), NOTHING_FRESH)
    keys, _ = kv.read(0, torch.tensor([0]))
    assert not keys[0, 0, 0].isfinite().any()
    assert torch.equal(keys[0, 1], torch.ones_like(keys[0, 1]))


def test_the_same_bytes_hold_nearly_four_times_the_floats_of_a_cpu() -> None:
    """A code is a quarter of a float32, half of a float16; a scale is four bytes for each position and head."""
    config = LlamaConfig.from_folder(DEMO_MODEL)
    kv = demo_cache(KVFormat.INT8, kv_bytes=1 << 20)
    held = sum(each.nbytes for each in (*kv.keys, *kv.values, *kv.key_scales, *kv.value_scales))
    assert held <= 1 << 20 < held * (kv.num_blocks + 1) / kv.num_blocks
    assert kv.num_blocks / ((1 << 20) / config.kv_bytes_per_block(16, 4)) > 4 * config.head_dim / (config.head_dim + 5)


def test_the_demo_model_says_the_same(models: tuple[LlamaModel, LlamaModel]) -> None:
    """Token by token of its answers: how far off a row of logits is, and how often the best token is another."""
    exact, rounded = models
    text = SentencePieceProcessor(model_file=str(DEMO_MODEL / "tokenizer.model"))
    prompts = [[text.bos_id(), *text.encode(f"[INST] {question} [/INST]")] for question in QUESTIONS]
    theirs = greedy(exact, prompts, 40)
    ours = greedy(rounded, prompts, 40, forced=theirs.token_ids)
    is_end = theirs.token_ids == text.eos_id()
    is_answer = is_end.cumsum(1) - is_end.long() == 0  # up to the first end, which is part of it
    errors = ((ours.logits - theirs.logits).norm(dim=-1) / theirs.logits.norm(dim=-1))[is_answer]
    num_other = int((ours.token_ids != theirs.token_ids)[is_answer].sum())
    print(f"{num_other} of {len(errors)} ids differ; logits by {errors.mean():.1e}, {errors.max():.1e} at most")
    assert float(errors.mean()) < MEAN_LOGITS_ERROR
    assert float(errors.max()) < MAX_LOGITS_ERROR
    assert num_other <= MAX_OTHER_IDS


def test_chunks_and_company_change_no_bit(models: tuple[LlamaModel, LlamaModel]) -> None:
    """A position is rounded by itself, so a continuation has the bits of the uninterrupted run here too."""
    _, model = models
    prompts = random_prompts(model.vocab_size, [150, 40], seed=3)
    tables = block_tables(model, [160, 60])
    alone = [
        model.forward([SequenceSlice(prompt, 0, table, True)])[0] for prompt, table in zip(prompts, tables, strict=True)
    ]
    for tensor in (*model.kv.key_scales, *model.kv.value_scales) if isinstance(model.kv, Int8KVTensors) else ():
        tensor.fill_(math.nan)
    first, second = prompts
    model.forward([SequenceSlice(first[:70], 0, tables[0], False), SequenceSlice(second[:1], 0, tables[1], False)])
    model.forward(
        [SequenceSlice(second[1:39], 1, tables[1], False), SequenceSlice(first[70:149], 70, tables[0], False)]
    )
    together = model.forward(
        [SequenceSlice(first[149:], 149, tables[0], True), SequenceSlice(second[39:], 39, tables[1], True)]
    )
    assert torch.equal(together, torch.stack(alone))


def test_the_hopper_kernels_hold_it_too(half_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are asked for it, and what takes their place where they do not compile holds it as well."""
    asked = []

    def refuse(*_: object, kv_format: KVFormat, **__: object) -> None:
        asked.append(kv_format)
        raise KernelBuildError("no compiler")

    monkeypatch.setattr(loader, "hopper_takes", lambda *_: True)
    monkeypatch.setattr(loader, "load_hopper_model", refuse)
    model = load_model(half_folder, Quantization.INT8, CPU, kv_blocks=2, kv_format=KVFormat.INT8)
    assert asked == [KVFormat.INT8]
    assert isinstance(model, LlamaModel)
    assert isinstance(model.kv, Int8KVTensors)
