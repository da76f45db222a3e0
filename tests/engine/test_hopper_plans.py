"""What a HopperModel computes on the host: plans, inputs, the order of logits; and when the loader does without it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from worker.engine import loader
from worker.engine.batch import SequenceSlice
from worker.engine.config import LlamaConfig, Quantization
from worker.engine.hopper_decode import _step_inputs, context_sizes
from worker.engine.hopper_model import wanted_rows
from worker.engine.hopper_prefill_plan import (
    PrefillPlan,
    PrefillRoom,
    exact_room,
    find_graph_room,
    graph_room,
    read_plan,
    write_plan,
)
from worker.engine.hopper_weights import UnpackableWeight, hopper_takes
from worker.engine.kernels.build import KernelBuildError
from worker.engine.model import LlamaModel

CPU = torch.device("cpu")


def plan_of(slices: Sequence[SequenceSlice], room: PrefillRoom | None = None) -> PrefillPlan:
    """As the device reads it; with as much room as they need unless told."""
    room = room or exact_room(slices)
    return read_plan(torch.from_numpy(write_plan(slices, room)), room)


def test_a_prefill_plan_says_where_every_key_is() -> None:
    """New tokens after a cached prefix, and a sequence from its beginning; in blocks of 64."""
    plan = plan_of(
        [
            SequenceSlice([11, 12, 13], 63, [5, 2, 9], True),
            SequenceSlice([21, 22], 0, (7,), False, wants_all_logits=True),
            SequenceSlice([31, 32], 0, [1], False),
        ],
    )
    assert plan.token_ids.tolist() == [11, 12, 13, 21, 22, 31, 32]
    assert plan.positions.tolist() == [63, 64, 65, 0, 1, 0, 1]
    assert plan.slots.tolist() == [5 * 64 + 63, 2 * 64, 2 * 64 + 1, 7 * 64, 7 * 64 + 1, 64, 65]
    assert plan.key_slots.tolist() == [*range(320, 384), 128, 129, 448, 449, 64, 65]
    assert plan.query_ends.tolist() == [0, 3, 5, 7]
    assert plan.key_ends.tolist() == [0, 66, 68, 70]
    assert plan.logit_rows.tolist() == [2, 3, 4]
    assert (plan.room.max_queries, plan.room.max_keys) == (3, 66)
    assert plan.positions.dtype == plan.query_ends.dtype == plan.key_ends.dtype == torch.int32
    assert plan.slots.dtype == torch.int64


def test_a_prefill_that_wants_no_logits_has_no_rows() -> None:
    """And an index of whole numbers nevertheless."""
    rows = plan_of([SequenceSlice([1, 2], 0, [0], False)]).logit_rows
    assert rows.tolist() == []
    assert rows.dtype == torch.int32


def test_a_graphs_plan_is_padded_with_tokens_and_slices_that_do_nothing() -> None:
    """Tokens at position -1, whose keys nobody writes; slices without a token; rows that nobody reads."""
    slices = [SequenceSlice([11, 12, 13], 0, [5], True), SequenceSlice([21, 22], 0, (7,), False)]
    room = find_graph_room(slices)
    assert room == graph_room(16)
    plan = plan_of(slices, room)
    assert plan.token_ids.tolist() == [11, 12, 13, 21, 22] + [0] * 11
    assert plan.positions.tolist() == [0, 1, 2, 0, 1] + [-1] * 11
    assert plan.slots.tolist()[:5] == [320, 321, 322, 448, 449]
    assert plan.key_slots.tolist() == [320, 321, 322, 448, 449] + [0] * 11
    assert plan.query_ends.tolist() == plan.key_ends.tolist() == [0, 3] + [5] * 15
    assert plan.logit_rows.tolist() == [2] + [0] * 15
    assert plan_of([], room).query_ends.tolist() == [0] * 17


def test_only_whole_prompts_have_a_graphs_room() -> None:
    """Of 512 tokens together at most, in at most 16 slices, whose last logits are all that is wanted."""
    whole = SequenceSlice([1] * 256, 0, range(4), True)
    assert find_graph_room([whole, whole]) == graph_room(512)
    assert find_graph_room([whole, whole, SequenceSlice([1, 2], 0, [0], True)]) is None
    assert find_graph_room([SequenceSlice([1, 2], 0, [0], True)] * 17) is None
    assert find_graph_room([SequenceSlice([1, 2], 64, [0, 1], True)]) is None
    assert find_graph_room([SequenceSlice([1, 2], 0, [0], False, wants_all_logits=True)]) is None


def test_decode_inputs_are_padded_to_the_graph() -> None:
    """Ids, positions, tables; rows without a sequence stand at -1, tables end with the block of the position."""
    slices = [SequenceSlice([8], 64, [3, 4, 6], True), SequenceSlice([9], 0, (5,), True)]
    numbers = _step_inputs(slices, 4, 3)
    assert numbers[:4] == [8, 9, 0, 0]
    assert numbers[4:8] == [64, 0, -1, -1]
    assert numbers[8:] == [3, 4, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0]


def test_context_sizes_cover_the_context() -> None:
    """In whole splits of 256, doubling."""
    assert context_sizes(4096) == (256, 512, 1024, 2048, 4096)
    assert context_sizes(1100) == (256, 512, 1024, 1280)
    assert context_sizes(64) == (256,)


def test_logits_are_picked_in_slice_order() -> None:
    """Rows of single tokens come first, wanted or not, and then the wanted ones of longer slices."""
    slices = [
        SequenceSlice([1, 2, 3], 0, [0], True),
        SequenceSlice([1], 0, [1], True),
        SequenceSlice([1], 0, [2], False),
        SequenceSlice([1, 2], 0, [3], False, wants_all_logits=True),
        SequenceSlice([1], 0, [4], True),
    ]
    assert wanted_rows(slices) == [3, 0, 4, 5, 2]


def test_the_cpu_takes_the_plain_path() -> None:
    """Whatever the shape."""
    config = LlamaConfig(4096, 11008, 32, 32, 32, 128, 32000, 4096, 1e-5, 1e4, False, "float16", Quantization.NONE)
    assert not hopper_takes(config, Quantization.INT8, CPU)


@pytest.mark.parametrize("error", [UnpackableWeight("a layer is not quantized"), KernelBuildError("no compiler")])
def test_what_the_kernels_cannot_run_takes_the_plain_path(
    half_folder: Path, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning that says why, since it is far slower; and never when other blocks were asked for."""
    attempts = []

    def refuse(*_: object, **__: object) -> None:
        attempts.append(1)
        raise error

    monkeypatch.setattr(loader, "hopper_takes", lambda *_: True)
    monkeypatch.setattr(loader, "load_hopper_model", refuse)
    with caplog.at_level(logging.WARNING):
        model = loader.load_model(half_folder, Quantization.INT8, CPU, kv_blocks=2)
    assert isinstance(model, LlamaModel)
    assert model.block_size == loader.PLAIN_BLOCK_SIZE
    assert str(error) in caplog.text
    loader.load_model(half_folder, Quantization.INT8, CPU, kv_blocks=2, block_size=32)
    assert len(attempts) == 1
