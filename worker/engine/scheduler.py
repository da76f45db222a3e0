"""Which tokens of which sequences run in the next step: admission, chunked prefill, preemption. No torch."""

from __future__ import annotations

import bisect
from collections import Counter
from dataclasses import dataclass

from worker.engine.kv_cache import BlockPool
from worker.engine.sequence import ScheduledSlice, Sequence


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Bounds of a step. Raises ValueError when they contradict each other.

    Attributes:
        max_sequences: sequences that hold KV blocks at the same time.
        max_step_tokens: tokens in one step, decode and prefill together; at least `max_sequences`.
        prefill_chunk: prompt tokens of one sequence in one step.
        is_deterministic: what a sequence computes in which step is a function of its own tokens alone, of a continued
            one too: its prompt in whole chunks, and then a token a step, also those it had already. Blocks are not
            shared, and a step may exceed `max_step_tokens` by less than a chunk.
    """

    max_sequences: int
    max_step_tokens: int
    prefill_chunk: int
    is_deterministic: bool = False

    def __post_init__(self) -> None:
        if self.max_sequences < 1 or self.prefill_chunk < 1:
            raise ValueError("max_sequences and prefill_chunk must be at least 1")
        if self.max_step_tokens < self.max_sequences:
            raise ValueError(
                f"max_step_tokens is {self.max_step_tokens}; each of {self.max_sequences} sequences needs one"
            )


class Scheduler:
    """Continuous batching over a block pool; the older sequence always wins.

    Running sequences hold blocks, waiting ones hold none; both lists are ordered by arrival. A sequence is
    admitted when there are blocks for all its tokens and one more, so only decoding ever asks for further blocks.
    When none is free, the youngest held sequence, else the youngest, gives its blocks back and is computed again
    later. So the oldest running sequence that is not held is nobody's victim and advances in every step. Where all
    that run are held they give way to an admission too: nobody else would ever free a block.

    Sequences of one generation share the full blocks of what they have in common: one computes them, the others wait
    for that and then refer to the same blocks. What follows each computes itself, in blocks of its own: so a block
    that anybody writes has one owner, and none is ever copied.
    """

    def __init__(self, pool: BlockPool, block_size: int, settings: EngineSettings) -> None:
        self._pool = pool
        self._block_size = block_size
        self._settings = settings
        self._running: list[Sequence] = []
        self._waiting: list[Sequence] = []
        self.num_preemptions = 0
        self.num_scheduled = 0  # slices of the last step

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences not yet admitted, or preempted."""
        return len(self._waiting)

    @property
    def can_schedule(self) -> bool:
        """Whether `schedule` would return a slice."""
        return any(not sequence.is_idle for sequence in self._running) or self._next_admissible() is not None

    @property
    def has_spare_blocks(self) -> bool:
        """Whether nobody can be preempted by the next `schedule`."""
        return self._pool.num_free >= len(self._running) and (not self._waiting or not self._is_held_up)

    def fits_alone(self, num_positions: int) -> bool:
        """Whether a sequence of that many positions fits the pool when it is the only one."""
        return self._num_blocks_for(num_positions) <= self._pool.num_blocks

    def add(self, sequence: Sequence) -> None:
        """Let the sequence wait for its turn."""
        _insert(self._waiting, sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget the sequence, if it is listed, and free its blocks at once."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._release_blocks(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def schedule(self) -> list[ScheduledSlice]:
        """Choose the slices of the next step: every decode, then running prefills, then admissions in order.

        The caller runs them all and advances `num_computed`; each sequence is in at most one slice.
        """
        budget = self._settings.max_step_tokens
        slices = self._schedule_decodes()
        budget -= len(slices)
        for sequence in self._running:
            if budget > 0 and sequence.num_pending > 1 and not sequence.is_idle:
                slices.append(self._next_slice(sequence, budget))
                budget -= slices[-1].num_tokens
        while budget > 0 and (admitted := self._next_admissible()) is not None:
            self._admit(admitted)
            slices.append(self._next_slice(admitted, budget))
            budget -= slices[-1].num_tokens
        self.num_scheduled = len(slices)
        return slices

    def check(self) -> None:
        """Raise AssertionError unless pool, tables and lists agree."""
        self._pool.check()
        sequences = self._running + self._waiting
        assert len({id(sequence) for sequence in sequences}) == len(sequences), "a sequence is listed twice"
        assert len({sequence.arrival for sequence in sequences}) == len(sequences), "two sequences have one rank"
        for listed in (self._running, self._waiting):
            assert [s.arrival for s in listed] == sorted(s.arrival for s in listed), "a list is out of order"
        references = Counter(block for sequence in self._running for block in sequence.block_table)
        for block in range(self._pool.num_blocks):
            assert self._pool.num_references(block) == references[block], f"block {block} has a wrong count"
        for sequence in self._running:
            covered = len(sequence.block_table) * self._block_size
            assert 0 <= sequence.num_computed < len(sequence.token_ids), "no token is pending"
            assert covered >= sequence.num_computed, "the block table is too short"
            written = sequence.block_table[sequence.num_computed // self._block_size :]
            assert all(self._pool.num_references(block) == 1 for block in written), "a block has two writers"
        for sequence in self._waiting:
            assert not sequence.block_table, "a waiting sequence holds blocks"
            assert sequence.num_computed == 0, "a waiting sequence counts computed positions"
        assert len(self._running) <= self._settings.max_sequences, "too many sequences run"

    def _schedule_decodes(self) -> list[ScheduledSlice]:
        slices = []
        for sequence in tuple(self._running):  # oldest first: victims are later in the order, or held
            if sequence.is_idle or not sequence.block_table or sequence.num_pending != 1:
                continue
            if self._reserve(sequence):
                slices.append(ScheduledSlice(sequence, 1))
        return slices

    def _reserve(self, sequence: Sequence) -> bool:
        """Let the table cover all tokens, at others' cost; False when the sequence itself had to give way."""
        while len(sequence.block_table) < self._num_blocks_for(len(sequence.token_ids)):
            if self._pool.num_free == 0:
                victim = self._choose_victim()
                self._preempt(victim)
                if victim is sequence:
                    return False
            sequence.block_table += self._pool.allocate(1)
        return True

    def _choose_victim(self) -> Sequence:
        held = [sequence for sequence in self._running if sequence.is_held]
        return held[-1] if held else self._running[-1]

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._release_blocks(sequence)
        _insert(self._waiting, sequence)  # older than all that never ran, so it comes to the front
        self.num_preemptions += 1

    def _release_blocks(self, sequence: Sequence) -> None:
        self._pool.free(sequence.block_table)
        sequence.block_table = []
        sequence.num_computed = 0

    def _next_slice(self, sequence: Sequence, budget: int) -> ScheduledSlice:
        if self._settings.is_deterministic:
            num_prompt_left = sequence.num_prompt - sequence.num_computed
            return ScheduledSlice(sequence, max(1, min(num_prompt_left, self._settings.prefill_chunk)))
        return ScheduledSlice(sequence, min(sequence.num_pending, self._settings.prefill_chunk, budget))

    def _next_admissible(self) -> Sequence | None:
        """The first waiting sequence that is ready, if slots and blocks allow it. Nobody overtakes it."""
        if len(self._running) >= self._settings.max_sequences and not self._is_held_up:
            return None
        for sequence in self._waiting:
            if not sequence.is_held and (shared := self._shared_blocks(sequence)) is not None:
                num_blocks = self._num_blocks_for(len(sequence.token_ids) + 1)
                fits = num_blocks - len(shared) <= self._pool.num_free
                return sequence if fits or (self._is_held_up and num_blocks <= self._pool.num_blocks) else None
        return None

    @property
    def _is_held_up(self) -> bool:
        """Whether all that run are held: without an admission nothing moves."""
        return bool(self._running) and all(sequence.is_held for sequence in self._running)

    def _admit(self, sequence: Sequence) -> None:
        num_blocks = self._num_blocks_for(len(sequence.token_ids) + 1)
        if len(self._running) >= self._settings.max_sequences:
            self._preempt(self._running[-1])
        while num_blocks - len(shared := self._shared_blocks(sequence) or []) > self._pool.num_free:
            self._preempt(self._running[-1])  # held, as all of them are
        self._waiting.remove(sequence)
        self._pool.share(shared)
        sequence.block_table = [*shared, *self._pool.allocate(num_blocks - len(shared))]
        sequence.num_computed = len(shared) * self._block_size
        _insert(self._running, sequence)

    def _shared_blocks(self, sequence: Sequence) -> list[int] | None:
        """The blocks that the sequence can begin with; None while another of its generation computes them."""
        # The last common token is left out: its logits choose the next one, so it runs again.
        num_blocks = max(0, sequence.num_common - 1) // self._block_size
        if num_blocks == 0 or sequence.wants_all_logits or self._settings.is_deterministic:
            return []
        relatives = [each for each in self._running if each.generation_id == sequence.generation_id]
        for each in relatives:
            if each.num_computed >= num_blocks * self._block_size:
                return each.block_table[:num_blocks]
        return None if relatives else []

    def _num_blocks_for(self, num_positions: int) -> int:
        return -(-num_positions // self._block_size)


def _insert(sequences: list[Sequence], sequence: Sequence) -> None:
    bisect.insort(sequences, sequence, key=lambda each: each.arrival)
