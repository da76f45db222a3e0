"""What a prefill on a Hopper GPU has to know of its slices: numbers that the host writes and the device reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeVar

import numpy as np
from torch import Tensor

from worker.engine.batch import SequenceSlice
from worker.engine.kernels.attention import BLOCK_SIZE

Int32s = np.ndarray[tuple[int], np.dtype[np.int32]]
_Numbers = TypeVar("_Numbers", Tensor, Int32s)

GRAPH_TOKENS = (16, 32, 64, 128, 256, 384, 512)  # from 128 on in the tiles of the products
GRAPH_SLICES = 16


@dataclass(frozen=True, slots=True)
class PrefillRoom:
    """How much a prefill has room for, in whatever it holds in numbers or in kernels' grids.

    Attributes:
        num_tokens: T, new tokens of all slices.
        num_keys: K, positions that they attend to, those of each slice's sequence counted by themselves.
        num_slices: S.
        num_logit_rows: R, tokens whose logits are wanted.
        max_queries: tokens of one slice.
        max_keys: positions of one sequence.
    """

    num_tokens: int
    num_keys: int
    num_slices: int
    num_logit_rows: int
    max_queries: int
    max_keys: int

    @property
    def parts(self) -> tuple[int, ...]:
        """How many numbers each of a plan's tensors takes, in their order."""
        ends = self.num_slices + 1
        return *(self.num_tokens,) * 3, self.num_keys, ends, ends, self.num_logit_rows

    @property
    def size(self) -> int:
        """Numbers of a plan."""
        return sum(self.parts)


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """What a prefill runs. Where there is more room than slices, tokens stand at position -1 and slices are empty.

    Attributes:
        token_ids: [T] int32.
        positions: [T] int32, each token's position in its sequence.
        slots: [T] int64, where its key and value go: block * BLOCK_SIZE + offset.
        key_slots: [K] int32, where the keys and values of each slice's sequence are, slice by slice.
        query_ends: [S + 1] int32, 0 and the row after each slice's last token.
        key_ends: [S + 1] int32, the same of key_slots.
        logit_rows: [R] int32, tokens whose logits are wanted, in slice order.
        room: T, K, S, R and the rest of it.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    key_slots: Tensor
    query_ends: Tensor
    key_ends: Tensor
    logit_rows: Tensor
    room: PrefillRoom


def exact_room(slices: Sequence[SequenceSlice]) -> PrefillRoom:
    """Room for these slices and no more."""
    lengths = [len(part.token_ids) for part in slices]
    num_keys = [part.start + length for part, length in zip(slices, lengths, strict=True)]
    num_rows = sum(part.num_logit_rows for part in slices)
    return PrefillRoom(sum(lengths), sum(num_keys), len(slices), num_rows, max(lengths), max(num_keys))


def graph_room(num_tokens: int) -> PrefillRoom:
    """Room for whole prompts, and for the logits of the last token of each."""
    return PrefillRoom(num_tokens, num_tokens, GRAPH_SLICES, GRAPH_SLICES, num_tokens, num_tokens)


def find_graph_room(slices: Sequence[SequenceSlice]) -> PrefillRoom | None:
    """The smallest of the graphs' rooms for these slices; None where there is none.

    A slice over a cached prefix has none: it would need a size for each of many lengths of that, too. Such slices are
    later chunks of long prompts, for which the device mostly takes longer than the host does without a graph.
    """
    if len(slices) > GRAPH_SLICES or any(part.start or part.wants_all_logits for part in slices):
        return None
    num_tokens = sum(len(part.token_ids) for part in slices)
    return next((graph_room(size) for size in GRAPH_TOKENS if size >= num_tokens), None)


def write_plan(slices: Sequence[SequenceSlice], room: PrefillRoom) -> Int32s:
    """The numbers of a plan with that much room, [room.size]."""
    numbers = np.zeros(room.size, dtype=np.int32)
    token_ids, positions, slots, key_slots, query_ends, key_ends, logit_rows = _split(numbers, room)
    positions[:] = -1
    row = key = wanted = 0
    for place, part in enumerate(slices):
        length = len(part.token_ids)
        num_keys = part.start + length
        where = _key_slots(part.block_table, num_keys)
        new = slice(row, row + length)
        token_ids[new] = part.token_ids
        positions[new] = np.arange(part.start, num_keys)
        slots[new] = where[part.start :]
        key_slots[key : key + num_keys] = where
        row, key = row + length, key + num_keys
        logit_rows[wanted : wanted + part.num_logit_rows] = np.arange(row - part.num_logit_rows, row)
        wanted += part.num_logit_rows
        query_ends[place + 1 :] = row  # of the empty slices behind it, too
        key_ends[place + 1 :] = key
    return numbers


def read_plan(numbers: Tensor, room: PrefillRoom) -> PrefillPlan:
    """The plan whose numbers stand at the beginning of an int32 tensor, which it refers to."""
    token_ids, positions, slots, key_slots, query_ends, key_ends, logit_rows = _split(numbers, room)
    return PrefillPlan(token_ids, positions, slots.long(), key_slots, query_ends, key_ends, logit_rows, room)


def _split(numbers: _Numbers, room: PrefillRoom) -> list[_Numbers]:
    return [numbers[first:end] for first, end in pairwise(accumulate(room.parts, initial=0))]


def _key_slots(block_table: Sequence[int], num_keys: int) -> Int32s:
    """[num_keys]: where the first positions of a sequence are in the cache."""
    blocks = np.asarray(block_table[: -(-num_keys // BLOCK_SIZE)], dtype=np.int32)
    slots: Int32s = np.add.outer(blocks * BLOCK_SIZE, np.arange(BLOCK_SIZE, dtype=np.int32)).ravel()
    return slots[:num_keys]
