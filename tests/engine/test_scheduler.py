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
        return self.add_choices(num_tokens, 1)[0]

    def add_choices(self, num_tokens: int, num_choices: int) -> list[Sequence]:
        """New sequences of one generation, with the same prompt tokens."""
        name = f"g{self.num_added + 1}"
        sequences = []
        for choice in range(num_choices):
            self.num_added += 1
            sequence = Sequence(name, self.num_added, list(range(num_tokens)), choice=choice)
            sequence.num_common = num_tokens if num_choices > 1 else 0
            self.scheduler.add(sequence)
            sequences.append(sequence)
        return sequences

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


def test_held_sequences_give_way_to_one_that_waits_where_nothing_else_can_run() -> None:
    """The youngest first, and no more than it needs: who runs alone would else wait for those that wait for it."""
    herd = Herd(num_blocks=4)
    first, second = herd.add(3), herd.add(7)
    assert herd.step() == [("g1", 3), ("g2", 7)]
    assert herd.step() == [("g1", 1), ("g2", 1)]
    alone = herd.add(7)
    first.is_held = second.is_held = True
    assert herd.scheduler.can_schedule
    assert not herd.scheduler.has_spare_blocks
    assert herd.step() == [("g3", 7)]
    assert (len(first.block_table), second.block_table) == (1, [])
    herd.scheduler.remove(alone)
    second.is_held = False
    assert herd.step() == [("g2", 8)]


def test_a_held_sequence_gives_its_place_to_one_that_waits_where_nothing_else_can_run() -> None:
    """Blocks are free, but no place: the last job had more choices than were left."""
    herd = Herd(num_blocks=8, max_sequences=2)
    first, second = herd.add(3), herd.add(3)
    assert herd.step() == [("g1", 3), ("g2", 3)]
    herd.add(3)
    assert herd.step() == [("g1", 1), ("g2", 1)]
    first.is_held = second.is_held = True
    assert herd.scheduler.can_schedule
    assert herd.step() == [("g3", 3)]
    assert (len(first.block_table), second.block_table) == (1, [])


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


def test_choices_wait_for_the_first_and_refer_to_its_blocks() -> None:
    """Two full blocks of the prompt of 11 are computed once; four other blocks, not eight, hold the rest."""
    herd = Herd(num_blocks=16)
    first, second, third = herd.add_choices(11, 3)
    assert herd.step() == [("g1", 8)]
    assert herd.step() == [("g1", 3)] * 3
    assert first.block_table[:2] == second.block_table[:2] == third.block_table[:2]
    assert herd.pool.num_free == 16 - 2 - 3
    herd.scheduler.remove(first)
    herd.scheduler.check()
    assert herd.pool.num_free == 16 - 2 - 2
    herd.scheduler.remove(second)
    herd.scheduler.remove(third)
    assert herd.pool.num_free == 16


def test_waiting_for_the_first_choice_lets_others_pass() -> None:
    """But once they are ready nobody overtakes them."""
    herd = Herd(num_blocks=16, prefill_chunk=4, max_sequences=4)
    first, second = herd.add_choices(12, 2)
    herd.add(2)
    assert herd.step() == [("g1", 4), ("g3", 2)]
    assert second.block_table == []
    assert herd.step() == [("g3", 1), ("g1", 4)]
    herd.add(30)  # with its one token more it needs eight blocks
    herd.add(2)
    assert herd.step() == [("g3", 1), ("g1", 4), ("g1", 4), ("g4", 4)]
    assert first.block_table[:2] == second.block_table[:2]


def test_a_preempted_choice_comes_back_to_the_shared_blocks() -> None:
    """It gives back only what is its own; the rest it finds again while a relative still runs."""
    herd = Herd(num_blocks=5)
    first, second = herd.add_choices(9, 2)
    herd.step()
    herd.step()
    assert herd.pool.num_free == 1
    for _ in range(4):
        herd.step()
    assert herd.scheduler.num_preemptions == 1
    assert second.block_table == []
    assert len(second.token_ids) > 9
    herd.scheduler.remove(first)
    assert herd.pool.num_free == 5  # nobody refers to the prompt any more
    assert herd.step() == [("g1", 8)]
    herd = Herd(num_blocks=6)
    first, second, third = herd.add_choices(9, 3)
    for _ in range(6):
        herd.step()
    assert (third.block_table, third.num_computed) == ([], 0)
    herd.scheduler.remove(second)
    assert herd.step()[-1] == ("g1", len(third.token_ids) - 1 - 8)
    assert third.block_table[:2] == first.block_table[:2]


def test_a_sequence_whose_every_logit_is_wanted_computes_every_token() -> None:
    """What another has computed would be missing."""
    herd = Herd(num_blocks=16)
    first, second = herd.add_choices(9, 2)
    second.wants_all_logits = True
    assert herd.step() == [("g1", 8), ("g1", 8)]
    assert not set(first.block_table) & set(second.block_table)


def test_random_work_keeps_budget_and_invariants() -> None:
    """Random arrivals, some of several choices, holds and removals: the budget holds, work comes when promised."""
    rng = random.Random(3)
    herd = Herd(num_blocks=9, max_sequences=4, max_step_tokens=7, prefill_chunk=5)
    sequences: list[Sequence] = []
    num_shared = 0
    for _ in range(4000):
        action = rng.random()
        if action < 0.1 and len(sequences) < 8:
            sequences += herd.add_choices(rng.randint(1, 20), rng.choice([1, 1, 2, 3]))
        elif action < 0.15 and sequences:
            herd.scheduler.remove(sequences.pop(rng.randrange(len(sequences))))
        elif action < 0.3 and sequences:
            held = rng.choice(sequences)
            for sequence in sequences:  # the engine holds all choices of a generation
                if sequence.generation_id == held.generation_id:
                    sequence.is_held = not sequence.is_held
        promised = herd.scheduler.can_schedule
        slices = herd.step()
        assert bool(slices) == promised
        assert sum(num_tokens for _, num_tokens in slices) <= 7
        num_shared += any(herd.pool.num_references(block) > 1 for block in range(9))
        for sequence in [each for each in sequences if len(each.token_ids) > 30]:
            herd.scheduler.remove(sequence)
            sequences.remove(sequence)
    assert herd.scheduler.num_preemptions > 0
    assert num_shared > 100
    for sequence in sequences:
        herd.scheduler.remove(sequence)
    assert herd.pool.num_free == 9


@pytest.mark.parametrize("bounds", [(0, 8, 8), (8, 8, 0), (8, 7, 8)])
def test_contradictory_settings_are_refused(bounds: tuple[int, int, int]) -> None:
    """Each sequence needs one token of the budget, or decoding would starve."""
    with pytest.raises(ValueError, match="max_s"):
        EngineSettings(*bounds)


def test_a_deterministic_sequence_is_computed_alike_in_company_and_when_it_is_continued() -> None:
    """Its prompt in whole chunks whatever the budget, then a token a step, those of its log too."""
    settings = EngineSettings(max_sequences=4, max_step_tokens=16, prefill_chunk=8, is_deterministic=True)
    for num_others in (0, 3):
        for num_logged in (0, 3):
            scheduler = Scheduler(BlockPool(64), BLOCK_SIZE, settings)
            sequence = Sequence("mine", 9, list(range(11 + num_logged)), num_prompt=11)
            for number in range(num_others):
                scheduler.add(Sequence(f"other{number}", number, list(range(20)), num_prompt=20))
            scheduler.add(sequence)
            slices: list[int] = []
            while len(slices) < 6:
                for slice_ in scheduler.schedule():
                    if slice_.sequence is sequence:
                        slices.append(slice_.num_tokens)
                    completes = slice_.completes
                    slice_.sequence.num_computed += slice_.num_tokens
                    if completes:
                        slice_.sequence.token_ids.append(0)
            assert slices == [8, 3, 1, 1, 1, 1]
