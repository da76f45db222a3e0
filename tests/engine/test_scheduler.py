"""The scheduler alone: budget, order, admission, preemption. The sequences' tokens are only counted."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from worker.engine.kv_cache import BlockPool
from worker.engine.scheduler import EngineSettings, Scheduler
from worker.engine.sequence import ScheduledSlice, Sequence

BLOCK_SIZE = 4


class Herd:
    """A scheduler and a stand-in for the engine around it."""

    def __init__(
        self, num_blocks: int, *, max_sequences: int = 8, max_step_tokens: int = 16, prefill_chunk: int = 8
    ) -> None:
        self.pool = BlockPool(num_blocks)
        settings = EngineSettings(max_sequences, max_step_tokens, prefill_chunk)
        self.scheduler = Scheduler(self.pool, BLOCK_SIZE, settings)
        self.num_added = 0

    def add(self, num_tokens: int) -> Sequence:
        """A new sequence of that many prompt tokens."""
        self.num_added += 1
        sequence = Sequence(f"g{self.num_added}", self.num_added, list(range(num_tokens)))
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> list[tuple[str, int]]:
        """Schedule, pretend to run, and append a token where one is due; return (id, tokens) of the slices."""
        slices = self.scheduler.schedule()
        for slice_ in slices:
            self.run(slice_)
        self.scheduler.check()
        return [(slice_.sequence.generation_id, slice_.num_tokens) for slice_ in slices]

    def run(self, slice_: ScheduledSlice) -> None:
        """What the engine does after the forward pass."""
        sequence, completes = slice_.sequence, slice_.completes
        assert len(sequence.block_table) * BLOCK_SIZE >= sequence.num_computed + slice_.num_tokens
        sequence.num_computed += slice_.num_tokens
        if completes:
            sequence.token_ids.append(0)


def test_the_policy_modules_do_not_load_torch() -> None:
    """Sequence, block pool, scheduler and text handling are usable in a process without torch."""
    code = (
        "import sys, worker.engine.scheduler, worker.engine.kv_cache, worker.engine.choice, "
        "worker.engine.counter_rng; sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_a_long_prompt_is_prefilled_in_chunks() -> None:
    """Chunks of `prefill_chunk`; only the last one completes the sequence, then it decodes."""
    herd = Herd(num_blocks=8)
    herd.add(19)
    assert [herd.step() for _ in range(4)] == [[("g1", 8)], [("g1", 8)], [("g1", 3)], [("g1", 1)]]


def test_decodes_come_before_prefill_chunks_under_one_budget() -> None:
    """The budget is 10: each running sequence one token, the rest goes to the new prompt."""
    herd = Herd(num_blocks=32, max_step_tokens=10, prefill_chunk=100)
    herd.add(4)
    herd.add(4)
    assert herd.step() == [("g1", 4), ("g2", 4)]
    herd.add(20)
    assert herd.step() == [("g1", 1), ("g2", 1), ("g3", 8)]
    assert herd.step() == [("g1", 1), ("g2", 1), ("g3", 8)]
    assert herd.step() == [("g1", 1), ("g2", 1), ("g3", 4)]


def test_admission_is_in_order_and_nobody_overtakes() -> None:
    """A short prompt behind one that does not fit yet waits with it."""
    herd = Herd(num_blocks=4)
    first = herd.add(7)
    herd.add(12)
    herd.add(1)
    assert herd.step() == [("g1", 7)]
    assert (herd.scheduler.num_running, herd.scheduler.num_waiting) == (1, 2)
    herd.scheduler.remove(first)
    assert herd.step() == [("g2", 8)]


def test_admission_needs_blocks_for_the_prompt_and_one_token_more() -> None:
    """Eight tokens fill two blocks, and the ninth position needs a third."""
    herd = Herd(num_blocks=2)
    herd.add(8)
    assert not herd.scheduler.can_schedule
    assert herd.step() == []
    herd = Herd(num_blocks=3)
    herd.add(8)
    assert herd.step() == [("g1", 8)]
    assert herd.pool.num_free == 0


def test_no_more_sequences_run_than_there_are_slots() -> None:
    """The third waits until one is removed."""
    herd = Herd(num_blocks=32, max_sequences=2)
    first = herd.add(2)
    herd.add(2)
    herd.add(2)
    assert herd.step() == [("g1", 2), ("g2", 2)]
    assert herd.step() == [("g1", 1), ("g2", 1)]
    herd.scheduler.remove(first)
    assert herd.step() == [("g2", 1), ("g3", 2)]


def test_the_youngest_gives_way_and_comes_back_first() -> None:
    """Out of blocks: g2 is preempted with its tokens kept, and is computed again before g3."""
    herd = Herd(num_blocks=4)
    first, second = herd.add(7), herd.add(6)
    third = herd.add(1)
    assert herd.step() == [("g1", 7), ("g2", 6)]
    assert herd.step() == [("g1", 1), ("g2", 1)]
    assert herd.step() == [("g1", 1)]
    assert herd.scheduler.num_preemptions == 1
    assert (second.num_computed, len(second.token_ids), second.block_table) == (0, 8, [])
    herd.scheduler.remove(first)
    assert herd.step() == [("g2", 8), ("g3", 1)]
    assert third.num_computed == 1


def test_a_held_sequence_is_skipped_and_keeps_its_blocks() -> None:
    """Running or waiting; and when all are held there is nothing to schedule."""
    herd = Herd(num_blocks=8)
    first, second = herd.add(3), herd.add(3)
    second.is_held = True
    assert herd.step() == [("g1", 3)]
    first.is_held = True
    assert not herd.scheduler.can_schedule
    assert herd.step() == []
    assert len(first.block_table) == 1
    second.is_held = False
    assert herd.step() == [("g2", 3)]


def test_a_held_sequence_gives_way_before_one_that_advances() -> None:
    """It does not need its blocks now: the older held one loses them to the younger that decodes."""
    herd = Herd(num_blocks=3)
    first, second = herd.add(3), herd.add(7)
    assert herd.step() == [("g1", 3), ("g2", 7)]
    first.is_held = True
    assert herd.step() == [("g2", 1)]
    assert herd.step() == [("g2", 1)]
    assert first.block_table == []
    assert len(second.block_table) == 3


def test_the_oldest_always_advances_in_a_pool_that_fits_only_it() -> None:
    """No livelock: with everybody's wishes far above the pool, each sequence completes, oldest first."""
    herd = Herd(num_blocks=5)
    goal = 5 * BLOCK_SIZE - 1
    sequences = [herd.add(5) for _ in range(6)]
    finished = []
    for _ in range(400):
        herd.step()
        for sequence in sequences:
            if len(sequence.token_ids) >= goal and sequence not in finished:
                herd.scheduler.remove(sequence)
                finished.append(sequence)
    assert finished == sequences
    assert herd.pool.num_free == 5
    assert herd.scheduler.num_preemptions > 0


def test_removing_frees_blocks_at_once_and_twice_is_harmless() -> None:
    """Running, waiting, or not listed."""
    herd = Herd(num_blocks=4)
    first, second = herd.add(9), herd.add(9)
    herd.step()
    herd.scheduler.remove(first)
    assert herd.pool.num_free == 4
    herd.scheduler.remove(first)
    herd.scheduler.remove(second)
    assert (herd.scheduler.num_running, herd.scheduler.num_waiting) == (0, 0)


def test_random_work_keeps_budget_and_invariants() -> None:
    """Random arrivals, holds and removals: the budget holds, and work is scheduled whenever it is promised."""
    rng = random.Random(3)
    herd = Herd(num_blocks=9, max_sequences=4, max_step_tokens=7, prefill_chunk=5)
    sequences: list[Sequence] = []
    for _ in range(3000):
        action = rng.random()
        if action < 0.1 and len(sequences) < 8:
            sequences.append(herd.add(rng.randint(1, 20)))
        elif action < 0.15 and sequences:
            herd.scheduler.remove(sequences.pop(rng.randrange(len(sequences))))
        elif action < 0.3 and sequences:
            sequence = rng.choice(sequences)
            sequence.is_held = not sequence.is_held
        promised = herd.scheduler.can_schedule
        slices = herd.step()
        assert bool(slices) == promised
        assert sum(num_tokens for _, num_tokens in slices) <= 7
        for sequence in [each for each in sequences if len(each.token_ids) > 30]:
            herd.scheduler.remove(sequence)
            sequences.remove(sequence)
    assert herd.scheduler.num_preemptions > 0


@pytest.mark.parametrize("bounds", [(0, 8, 8), (8, 8, 0), (8, 7, 8)])
def test_contradictory_settings_are_refused(bounds: tuple[int, int, int]) -> None:
    """Each sequence needs one token of the budget, or decoding would starve."""
    with pytest.raises(ValueError, match="max_s"):
        EngineSettings(*bounds)
