"""HopperModel against the float32 CPU path over the same stored bytes: logits, ids, and broken caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.engine.oracle import Shape, block_tables, greedy, random_llama, random_prompts, save
from tests.engine.random_source import RandomSource
from worker.engine import hopper_prefill
from worker.engine.batch import SequenceSlice
from worker.engine.config import LlamaConfig, Quantization
from worker.engine.hopper_decode import BATCH_SIZES
from worker.engine.hopper_model import HopperModel
from worker.engine.loader import build_model, load_hopper_model, load_model, load_weights
from worker.engine.model import LlamaModel
from worker.engine.sampler import SamplingRow, sample
from worker.engine.sequence import SamplingParams

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
VOCAB, MAX_CONTEXT, BLOCKS = 1000, 1100, 400
MAX_ERROR = 1e-2  # of a row's logits, relative: float16 activations through three layers
TIE_GAP = 2e-2  # of the range of the logits


def small_config(num_kv_heads: int) -> LlamaConfig:
    """Three layers of four heads."""
    return LlamaConfig(
        hidden_size=512,
        intermediate_size=1408,
        num_layers=3,
        num_heads=4,
        num_kv_heads=num_kv_heads,
        head_dim=128,
        vocab_size=VOCAB,
        max_position_embeddings=MAX_CONTEXT,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        dtype="float16",
        saved_quantization=Quantization.NONE,
    )


Models = tuple[HopperModel, LlamaModel]


@pytest.fixture(
    scope="module",
    params=[(Quantization.INT8, 2), (Quantization.NF4, 4), (Quantization.NF4_DQ, 2)],
    ids=lambda param: f"{param[0].value}-{param[1]}kv",
)
def models(request: pytest.FixtureRequest) -> Models:
    """The model under test and the oracle: grouped-query and multi-head attention, every storage format."""
    quantization, num_kv_heads = request.param
    config = small_config(num_kv_heads)
    tested = load_hopper_model(
        RandomSource(config, quantization, CUDA, CPU),
        config,
        kv_blocks=BLOCKS,
        kv_bytes=None,
        progress=lambda _: None,
    )
    weights = load_weights(RandomSource(config, quantization, CPU, CPU), config, 2 << 30, lambda _: None)
    return tested, build_model(config, weights, kv_blocks=BLOCKS, kv_bytes=None, block_size=64)


def poison(model: HopperModel) -> None:
    """What others left in the cache is NaN."""
    for cache in (*model.kv.keys, *model.kv.values):
        cache.fill_(torch.nan)


def largest_error(ours: Tensor, theirs: Tensor) -> float:
    """Of all rows, norm of the difference over norm of theirs; NaN if ours has one."""
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.float32
    difference = (ours.cpu().double() - theirs.double()).norm(dim=1)
    return float((difference / theirs.double().norm(dim=1)).max())


def both(models: Models, slices: Sequence[SequenceSlice]) -> float:
    """The largest error of one step that both run."""
    tested, oracle = models
    return largest_error(tested.forward(slices), oracle.forward(slices))


def test_prompts_give_the_oracles_logits(models: Models) -> None:
    """Each alone, by the packed products, and all in one step, by dequantized weights."""
    poison(models[0])
    prompts = random_prompts(VOCAB, [2, 63, 64, 65, 129, 200, 600], seed=1)
    tables = block_tables(models[0], [len(prompt) for prompt in prompts])
    slices = [SequenceSlice(prompt, 0, table, True) for prompt, table in zip(prompts, tables, strict=True)]
    for part in slices:
        assert both(models, [part]) < MAX_ERROR, f"{len(part.token_ids)} tokens"
    poison(models[0])
    assert both(models, slices) < MAX_ERROR


def test_a_graph_computes_what_its_kernels_do_one_by_one(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts that fill a graph's room give the same bits, others the same but for the order of sums.

    In both no position of the cache is written but the prompts' own.
    """
    tested = models[0]
    for number, lengths in enumerate(([16], [128], [512], [2], [17], [129], [300], [3] * 16, [40, 7, 400, 5])):
        prompts = random_prompts(VOCAB, list(lengths), seed=20 + number)
        tables = block_tables(tested, list(lengths))
        slices = [SequenceSlice(prompt, 0, table, True) for prompt, table in zip(prompts, tables, strict=True)]
        slices[-1] = replace(slices[-1], wants_logits=len(slices) == 1)
        found = []
        for in_graph in (True, False):
            poison(tested)
            with monkeypatch.context() as patch:
                if not in_graph:
                    patch.setattr(hopper_prefill, "find_graph_room", lambda _: None)
                found.append((tested.forward(slices), tested.kv.keys[-1].clone(), tested.kv.values[-1].clone()))
        for ours, plain in zip(*found, strict=True):
            assert torch.equal(ours.isnan(), plain.isnan()), f"{lengths}: others' positions"
            if lengths in ([16], [128], [512]):
                assert torch.equal(ours.nan_to_num(), plain.nan_to_num()), f"{lengths}: bits"
        assert largest_error(found[0][0], found[1][0].cpu()) < MAX_ERROR, f"{lengths}"


def test_every_batch_size_gives_the_oracles_logits(models: Models) -> None:
    """Over the borders of the graphs, and past the largest one; each row has a context of its own."""
    poison(models[0])
    num_rows = 140
    lengths = [1 + 7 * row % 90 for row in range(num_rows)]
    prompts = random_prompts(VOCAB, [length + 1 for length in lengths], seed=2)
    tables = block_tables(models[0], [length + 1 for length in lengths])
    for first in range(0, num_rows, 20):
        some = range(first, first + 20)
        both(models, [SequenceSlice(prompts[row][:-1], 0, tables[row], True) for row in some])
    steps = [SequenceSlice(prompts[row][-1:], lengths[row], tables[row], True) for row in range(num_rows)]
    expected = models[1].forward(steps)
    sizes = sorted({size for border in BATCH_SIZES for size in (border, border + 1)} | {3, 100, num_rows})
    for size in sizes:
        error = largest_error(models[0].forward(steps[:size]), expected[:size])
        assert error < MAX_ERROR, f"{size} rows"


def test_long_contexts_give_the_oracles_logits(models: Models) -> None:
    """Prefilled in chunks; then decoded over the borders of blocks, of splits and of the graphs' context sizes."""
    poison(models[0])
    tokens, other = random_prompts(VOCAB, [MAX_CONTEXT, 40], seed=3)
    table, other_table = block_tables(models[0], [MAX_CONTEXT, 64])
    both(models, [SequenceSlice(other, 0, other_table, True)])
    at = 0
    for border in (255, 511, 1023, 1098):
        chunk = SequenceSlice(tokens[at:border], at, table, True)
        assert both(models, [chunk]) < MAX_ERROR, f"prefill to {border}"
        for at in (border, border + 1):
            step = [SequenceSlice(tokens[at : at + 1], at, table, True), SequenceSlice([5], 40, other_table, True)]
            assert both(models, step) < MAX_ERROR, f"position {at}"
        at = border + 2


def test_a_chunked_prompt_in_company_gives_the_oracles_logits(models: Models) -> None:
    """Decodes and chunks of several prompts in one step; logits come in slice order, and only where wanted."""
    poison(models[0])
    first, second, third = random_prompts(VOCAB, [300, 130, 20], seed=4)
    tables = block_tables(models[0], [310, 140, 40])
    a, b, c = tables
    steps = [
        [SequenceSlice(third, 0, c, True), SequenceSlice(first[:70], 0, a, False)],
        [
            SequenceSlice(first[70:200], 70, a, False),
            SequenceSlice([9], 20, c, True),
            SequenceSlice(second, 0, b, True),
        ],
        [SequenceSlice([8], 130, b, True), SequenceSlice(first[200:], 200, a, True), SequenceSlice([3], 21, c, True)],
        [SequenceSlice([4], 22, c, False), SequenceSlice([7], 300, a, True), SequenceSlice([6], 131, b, True)],
    ]
    for number, step in enumerate(steps):
        assert both(models, step) < MAX_ERROR, f"step {number}"


def test_a_step_that_wants_no_logits_returns_none(models: Models) -> None:
    """Of one token and of several."""
    for length in (1, 5):
        assert models[0].forward([SequenceSlice([1] * length, 0, [0], False)]).shape == (0, VOCAB)


def test_all_logits_of_a_prompt_are_those_of_its_prefixes(models: Models) -> None:
    """Row by row, beside a decode that stands before them."""
    tested = models[0]
    prompt = random_prompts(VOCAB, [40], seed=5)[0]
    rows = tested.forward(
        [SequenceSlice([3], 0, [1], True), SequenceSlice(prompt, 0, [0], False, wants_all_logits=True)]
    )
    assert rows.shape == (41, VOCAB)
    for length in (2, 20, 40):
        alone = tested.forward([SequenceSlice(prompt[:length], 0, [2], True)]).cpu()
        assert largest_error(rows[length : length + 1], alone) < MAX_ERROR


def test_greedy_ids_are_the_oracles(models: Models) -> None:
    """Given the oracle's tokens so far, at each of 32 steps of 24 sequences: the same best id, but for ties."""
    poison(models[0])
    prompts = random_prompts(VOCAB, [3, 16, 37, 70] * 6, seed=6)
    theirs = greedy(models[1], prompts, 32)
    ours = greedy(models[0], prompts, 32, forced=theirs.token_ids)
    best = theirs.logits.topk(2).values
    is_tie = best[..., 0] - best[..., 1] < TIE_GAP * (theirs.logits.amax(-1) - theirs.logits.amin(-1))
    differs = ours.token_ids != theirs.token_ids
    assert not (differs & ~is_tie).any()
    assert float(differs.float().mean()) <= 0.02


def test_a_broken_sequence_breaks_no_other(models: Models) -> None:
    """NaN in one sequence's cache stays in its own logits, in decode and in prefill, and in its own step."""
    tested = models[0]
    prompts = random_prompts(VOCAB, [150, 20, 70], seed=7)
    tables = block_tables(tested, [200, 100, 100])
    tested.forward([SequenceSlice(prompt, 0, table, False) for prompt, table in zip(prompts, tables, strict=True)])
    for cache in (*tested.kv.keys, *tested.kv.values):
        cache[tables[0][0]] = torch.nan
    for new in (1, 5):
        step = [
            SequenceSlice([1] * (new if row == 2 else 1), len(prompt), table, True)
            for row, (prompt, table) in enumerate(zip(prompts, tables, strict=True))
        ]
        logits = tested.forward(step)
        assert logits[0].isnan().all()
        assert logits[1:].isfinite().all()
        assert tested.forward(step[1:]).isfinite().all()


def test_queued_steps_choose_what_the_sampler_chooses_of_the_logits(models: Models) -> None:
    """Decodes that name their token by the row that chose it, beside a prefill: the ids of a host that waits."""
    tested = models[0]
    prompts = random_prompts(VOCAB, [40, 3, 100], seed=9)
    rows = [SamplingRow(SamplingParams(1.0, 40, 0.9, 0), 0.37), SamplingRow(SamplingParams(0.0, 0, 1.0, 0), 0.0)]
    slices = [SequenceSlice(prompt, 0, table, True) for prompt, table in zip(prompts, ([0], [1], [2, 3]), strict=True)]
    expected = [each.token_id for each in sample(tested.forward(slices[:2]), rows)]
    waiting = [
        SequenceSlice([expected[1]], 3, [1], True),
        SequenceSlice(prompts[2], 0, [2, 3], False),
        SequenceSlice([expected[0]], 40, [0], True),
    ]
    second = [each.token_id for each in sample(tested.forward(waiting), rows)]
    poison(tested)
    first = tested.queue(slices[:2], rows)
    ahead = [replace(waiting[0], token_ids=[-2]), waiting[1], replace(waiting[2], token_ids=[-1])]
    next_ = tested.queue(ahead, rows)
    assert first is not None
    assert next_ is not None
    assert [each.token_id for each in first.wait()] == expected
    assert [each.token_id for each in next_.wait()] == second


def test_steps_are_deterministic(models: Models) -> None:
    """The same step gives the same bits, in decode and in prefill, whatever ran between."""
    tested = models[0]
    prompt = random_prompts(VOCAB, [300], seed=8)[0]
    chunk = [SequenceSlice(prompt[:299], 0, [0, 1, 2, 3, 4], True)]
    step = [SequenceSlice(prompt[299:], 299, [0, 1, 2, 3, 4], True)]
    first, decoded = tested.forward(chunk), tested.forward(step)
    tested.forward([SequenceSlice(prompt, 0, [9, 8, 7, 6, 5], True)])
    assert torch.equal(tested.forward(chunk), first)
    for _ in range(10):
        assert torch.equal(tested.forward(step), decoded)


def test_with_fixed_rows_company_changes_no_bit() -> None:
    """Neither a decode's nor a prompt's, whatever else is in the step."""
    config = small_config(2)
    source = RandomSource(config, Quantization.INT8, CUDA, CPU)
    model = load_hopper_model(source, config, kv_blocks=60, kv_bytes=None, progress=lambda _: None, fixed_rows=20)
    prompts = random_prompts(VOCAB, [300, 150, 20, 140, 7], seed=11)
    tables = block_tables(model, [320] * 5)
    steps = [SequenceSlice(prompt, 0, table, True) for prompt, table in zip(prompts, tables, strict=True)]
    together = model.forward(steps)
    assert torch.equal(together, torch.cat([model.forward([step]) for step in steps]))
    steps = [SequenceSlice([9], len(prompt), table, True) for prompt, table in zip(prompts, tables, strict=True)]
    assert torch.equal(model.forward(steps), torch.cat([model.forward([step]) for step in steps]))


@pytest.mark.parametrize(("quantization", "max_gib"), [(Quantization.INT8, 7), (Quantization.NF4, 4.3)])
def test_a_model_of_7b_shape_runs(quantization: Quantization, max_gib: float) -> None:
    """Its weights take the bytes of their format; a prompt and decode steps of 32 give finite, equal logits."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    config = LlamaConfig(4096, 11008, 32, 32, 32, 128, 32000, 4096, 1e-5, 10000.0, False, "float16", Quantization.NONE)
    source = RandomSource(config, quantization, CUDA, CUDA)
    model = load_hopper_model(source, config, kv_blocks=160, kv_bytes=None, progress=lambda _: None)
    used = torch.cuda.memory_allocated() - before - sum(each.nbytes for each in (*model.kv.keys, *model.kv.values))
    scratch_and_buffers = 0.5 * 2**30  # of the graphs, too
    prompt = random_prompts(32000, [257], seed=7)[0]
    tables = [[5 * row + column for column in range(5)] for row in range(32)]

    whole = model.forward([SequenceSlice(prompt, 0, tables[0], True)])[0]
    for table in tables:
        model.forward([SequenceSlice(prompt[:256], 0, table, False)])
    decoded = model.forward([SequenceSlice(prompt[256:], 256, table, True) for table in tables])

    assert (used - scratch_and_buffers) / 2**30 < max_gib
    assert decoded.isfinite().all()
    assert float((decoded - whole).norm(dim=1).max() / whole.norm()) < 2e-2


def test_the_loader_chooses_by_shape_and_storage(tmp_path: Path) -> None:
    """A quantized folder with heads of 128 runs on the kernels; unquantized, or in other blocks, on the plain path."""
    shape = Shape("wide", 512, 704, 2, 4, 2, 128, 512)
    folder = save(random_llama(shape, seed=1), tmp_path / "half", torch.float16)
    fractions: list[float] = []
    for quantization in (Quantization.INT8, Quantization.NF4_DQ):
        model = load_model(folder, quantization, CUDA, kv_blocks=20, progress=fractions.append)
        plain = load_model(folder, quantization, CUDA, kv_blocks=20, block_size=32)
        assert isinstance(model, HopperModel)
        assert isinstance(plain, LlamaModel)
        prompts = random_prompts(512, [33, 70], seed=3)
        ours, theirs = (greedy(each, prompts, 1).logits[:, 0] for each in (model, plain))
        assert largest_error(ours, theirs) < MAX_ERROR
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0
        fractions.clear()
    assert isinstance(load_model(folder, Quantization.NONE, CUDA, kv_blocks=20), LlamaModel)
