"""What a captured decode step is given says the same as the plan of one that is not captured."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from tests.engine.oracle import random_prompts
from tests.engine.triton_checks import model_of, small_config
from worker.engine.attention import plan_step
from worker.engine.batch import SequenceSlice
from worker.engine.config import KVFormat, Quantization
from worker.engine.model_graphs import MIN_CONTEXT, context_sizes, step_numbers
from worker.engine.operators import PLAIN

CPU = torch.device("cpu")
BLOCK_SIZE = 16


def test_contexts_reach_every_position_in_whole_blocks() -> None:
    """Few of them, for each takes time to capture."""
    assert context_sizes(480, 16) == (MIN_CONTEXT,)
    assert context_sizes(4096, 16) == (512, 1024, 2048, 4096)
    assert context_sizes(4097, 16)[-1] == 8192
    assert all(size % 48 == 0 for size in context_sizes(5000, 48))


def test_a_model_that_cannot_be_captured_runs_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """Slower, with a warning that says why: here there is no GPU; on one it may be the memory."""
    shape = (small_config(), Quantization.INT8, KVFormat.FLOAT, CPU)
    with caplog.at_level(logging.WARNING, "worker.engine.model"):
        tested = model_of(*shape, replace(PLAIN, captures=True))
    assert "no CUDA graphs on cpu" in caplog.text
    plain = model_of(*shape, PLAIN)
    prompt = random_prompts(300, [20], seed=1)[0]
    for step in ([SequenceSlice(prompt, 0, [3, 1], True)], [SequenceSlice([7], 20, [3, 1], True)]):
        assert torch.equal(tested.forward(step), plain.forward(step))


def test_a_padded_step_is_the_plan_and_its_first_slice_again() -> None:
    """Every number of every row, at the first and the last position of a block too."""
    slices = [
        SequenceSlice([7], 16, [3, 5, 9], True),
        SequenceSlice([8], 15, [4], True),
        SequenceSlice([9], 0, [2], True),
    ]
    plan = plan_step([*slices, slices[0]], BLOCK_SIZE, CPU)
    batch, context = 4, 64
    numbers = torch.tensor(step_numbers(slices, batch, context, BLOCK_SIZE))
    token_ids, positions, slots = numbers[: 3 * batch].view(3, batch)
    tables = numbers[3 * batch :].view(batch, context // BLOCK_SIZE)

    assert token_ids.tolist() == plan.token_ids.tolist()
    assert positions.tolist() == plan.positions.tolist()
    assert slots.tolist() == plan.slots.tolist()
    assert tables.tolist() == [[3, 5, 3, 3], [4] * 4, [2] * 4, [3, 5, 3, 3]]
