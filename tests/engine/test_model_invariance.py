"""The CPU path gives a sequence the same bits alone or in a batch, whole or in chunks, prefilled or decoded."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.engine.oracle import Shape, block_tables, random_prompts
from worker.engine.batch import SequenceSlice
from worker.engine.config import Quantization
from worker.engine.loader import load_model
from worker.engine.model import LlamaModel

CPU = torch.device("cpu")
LENGTHS = [1, 2, 15, 16, 17, 31, 64, 127, 128, 129, 140, 200, 256, 257, 300]


@pytest.fixture(params=[1, 2], ids=["one-thread", "two-threads"])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run with this many threads in torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(half_folder: Path) -> LlamaModel:
    """An int8 model with room for all sequences of a test."""
    loaded = load_model(half_folder, Quantization.INT8, CPU, kv_blocks=200)
    assert isinstance(loaded, LlamaModel)
    return loaded


@pytest.fixture(scope="module")
def sequences(shape: Shape) -> list[list[int]]:
    """Sequences of many lengths, around the edges of blocks and tiles."""
    return random_prompts(shape.vocab_size, LENGTHS, seed=6)


@pytest.fixture(scope="module")
def alone(model: LlamaModel, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """[V] logits after each whole sequence, run in one step with nothing beside it, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    tables = block_tables(model, LENGTHS)
    logits = [
        model.forward([SequenceSlice(ids, 0, table, True)])[0] for ids, table in zip(sequences, tables, strict=True)
    ]
    torch.set_num_threads(before)
    return logits


@pytest.mark.parametrize("seed", range(6))
def test_chunks_and_company_change_no_bit(
    model: LlamaModel, sequences: list[list[int]], alone: list[Tensor], num_threads: int, seed: int
) -> None:
    """Each step runs random slices of random sequences in random order; the last logits are those of a lone prefill."""
    choose = random.Random(seed)
    tables = block_tables(model, LENGTHS)
    choose.shuffle(tables)  # tables are as long as the longest sequence needs, or longer
    tables.sort(key=len)
    largest_chunk = choose.choice([1, 7, 16, 50, 300])
    done = [0] * len(sequences)
    found: dict[int, Tensor] = {}
    while len(found) < len(sequences):
        waiting = [index for index in range(len(sequences)) if index not in found]
        running = choose.sample(waiting, choose.randint(1, len(waiting)))
        slices = []
        for index in running:
            end = min(len(sequences[index]), done[index] + choose.randint(1, largest_chunk))
            is_last = end == len(sequences[index])
            slices.append(SequenceSlice(sequences[index][done[index] : end], done[index], tables[index], is_last))
            done[index] = end
        logits = model.forward(slices)
        finished = [index for index, part in zip(running, slices, strict=True) if part.wants_logits]
        found.update(zip(finished, logits, strict=True))

    assert all(torch.equal(found[index], alone[index]) for index in range(len(sequences)))


def test_a_prefilled_position_has_the_bits_of_a_decoded_one(
    model: LlamaModel, sequences: list[list[int]], alone: list[Tensor], num_threads: int
) -> None:
    """One token a step, all sequences together as in decode: the same bits as in one prefill of each."""
    tables = block_tables(model, LENGTHS)
    for position in range(max(LENGTHS)):
        running = [index for index, length in enumerate(LENGTHS) if position < length]
        logits = model.forward(
            [SequenceSlice([sequences[index][position]], position, tables[index], True) for index in running]
        )
        for index, row in zip(running, logits, strict=True):
            if position == LENGTHS[index] - 1:
                assert torch.equal(row, alone[index])


@pytest.mark.parametrize("quantization", [Quantization.NONE, Quantization.NF4, Quantization.NF4_DQ])
def test_a_mixed_batch_equals_each_request_alone(
    half_folder: Path, sequences: list[list[int]], quantization: Quantization
) -> None:
    """Every storage format: decoding sequences and prompts in one step, against each by itself."""
    model = load_model(half_folder, quantization, CPU, kv_blocks=200)
    tables = block_tables(model, LENGTHS)
    whole = [SequenceSlice(ids, 0, table, True) for ids, table in zip(sequences, tables, strict=True)]
    alone = torch.cat([model.forward([part]) for part in whole])
    mixed = [
        SequenceSlice(part.token_ids[-1:], len(part.token_ids) - 1, part.block_table, True) if index % 2 else part
        for index, part in enumerate(whole)
    ]

    assert torch.equal(model.forward(mixed), alone)


def test_weights_dequantized_at_each_call_give_the_same_bits(
    half_folder: Path, model: LlamaModel, sequences: list[list[int]], alone: list[Tensor]
) -> None:
    """A model too large for the budget of resident float32 weights only takes longer."""
    frugal = load_model(half_folder, Quantization.INT8, CPU, kv_blocks=200, resident_bytes=0)

    logits = frugal.forward([SequenceSlice(sequences[-1], 0, list(range(19)), True)])[0]

    assert torch.equal(logits, alone[-1])


def test_what_a_block_held_before_never_shows(
    model: LlamaModel, sequences: list[list[int]], alone: list[Tensor]
) -> None:
    """Blocks full of NaN, as a broken sequence leaves them, are as good as new ones."""
    for cache in (*model.kv.keys, *model.kv.values):
        cache.fill_(torch.nan)

    logits = torch.cat(
        [
            model.forward([SequenceSlice(ids, 0, table, True)])
            for ids, table in zip(sequences, block_tables(model, LENGTHS), strict=True)
        ]
    )

    assert torch.equal(logits, torch.stack(alone))


def test_a_broken_sequence_breaks_no_other(model: LlamaModel, sequences: list[list[int]], alone: list[Tensor]) -> None:
    """A sequence whose keys and values are NaN has NaN logits; those beside it in the step keep their bits."""
    tables = block_tables(model, LENGTHS)
    pairs = list(zip(sequences, tables, strict=True))
    model.forward([SequenceSlice(ids[:-1], 0, table, False) for ids, table in pairs if len(ids) > 1])
    broken = LENGTHS.index(64)
    for cache in (*model.kv.keys, *model.kv.values):
        cache[tables[broken][0]] = torch.nan

    logits = model.forward([SequenceSlice(ids[-1:], len(ids) - 1, table, True) for ids, table in pairs])

    assert logits[broken].isnan().all()
    assert all(torch.equal(logits[index], alone[index]) for index in range(len(alone)) if index != broken)


def test_a_step_that_wants_no_logits_returns_none(model: LlamaModel, sequences: list[list[int]]) -> None:
    """The chunk of a prompt that is not its last costs no lm_head."""
    logits = model.forward([SequenceSlice(sequences[4], 0, [3, 4], False)])

    assert logits.shape == (0, model.vocab_size)


def test_all_logits_of_a_slice_have_the_bits_of_each_alone(
    model: LlamaModel, sequences: list[list[int]], alone: list[Tensor]
) -> None:
    """Rows of every token, beside slices that want one row or none; the last is what a lone prefill gives."""
    tables = block_tables(model, LENGTHS)
    slices = [
        SequenceSlice(sequences[3], 0, tables[3], True),
        SequenceSlice(sequences[7], 0, tables[7], False, wants_all_logits=True),
        SequenceSlice(sequences[5], 0, tables[5], False),
        SequenceSlice(sequences[2], 0, tables[2], True, wants_all_logits=True),
    ]
    logits = model.forward(slices)
    assert len(logits) == 1 + LENGTHS[7] + LENGTHS[2]
    assert torch.equal(logits[0], alone[3])
    assert torch.equal(logits[LENGTHS[7]], alone[7])
    assert torch.equal(logits[-1], alone[2])
    for length in (1, 2, 40):
        row = model.forward([SequenceSlice(sequences[7][:length], 0, tables[7], True)])[0]
        assert torch.equal(logits[length], row)


def test_logits_come_in_slice_order(model: LlamaModel, sequences: list[list[int]], alone: list[Tensor]) -> None:
    """Rows stand for the slices that want them, in the order of the slices."""
    tables = block_tables(model, LENGTHS)
    order = [5, 0, 9, 3]
    logits = model.forward([SequenceSlice(sequences[index], 0, tables[index], index != 9) for index in order])

    assert torch.equal(logits, torch.stack([alone[5], alone[0], alone[3]]))
