"""The block pool: every block is free or owned, never both, whatever the order of calls."""

from __future__ import annotations

import random

import pytest

from worker.engine.kv_cache import BlockPool, OutOfBlocks


def test_allocate_and_free_are_symmetric() -> None:
    """What was allocated is not free; what was freed is."""
    pool = BlockPool(4)
    blocks = pool.allocate(3)
    assert len(set(blocks)) == 3
    assert pool.num_free == 1
    pool.free(blocks)
    assert pool.num_free == pool.num_blocks == 4
    pool.check()


def test_allocation_is_all_or_nothing() -> None:
    """Asking for more than is free raises and takes nothing."""
    pool = BlockPool(2)
    with pytest.raises(OutOfBlocks, match="3 blocks asked for; 2 of 2 are free"):
        pool.allocate(3)
    assert pool.num_free == 2


def test_a_shared_block_is_freed_by_its_last_owner() -> None:
    """Two owners, two frees."""
    pool = BlockPool(1)
    blocks = pool.allocate(1)
    pool.share(blocks)
    assert pool.num_references(blocks[0]) == 2
    pool.free(blocks)
    assert pool.num_free == 0
    pool.free(blocks)
    assert pool.num_free == 1


def test_freeing_or_sharing_a_free_block_is_an_error() -> None:
    """A double free is found where it happens."""
    pool = BlockPool(1)
    blocks = pool.allocate(1)
    pool.free(blocks)
    with pytest.raises(ValueError, match="not allocated"):
        pool.free(blocks)
    with pytest.raises(ValueError, match="not allocated"):
        pool.share(blocks)


def test_a_pool_has_at_least_one_block() -> None:
    """A pool of no blocks could serve nothing."""
    with pytest.raises(ValueError, match="at least 1"):
        BlockPool(0)


def test_random_calls_keep_the_invariant() -> None:
    """10,000 random allocations, shares and frees: check() holds after each, and no live block is handed out."""
    rng = random.Random(7)
    pool = BlockPool(16)
    owned: list[int] = []
    for _ in range(10_000):
        action = rng.random()
        if action < 0.4 and pool.num_free:
            fresh = pool.allocate(rng.randint(1, pool.num_free))
            assert not set(fresh) & set(owned)
            owned += fresh
        elif action < 0.5 and owned:
            owned.append(rng.choice(owned))
            pool.share(owned[-1:])
        elif owned:
            pool.free([owned.pop(rng.randrange(len(owned)))])
        pool.check()
        assert pool.num_free == 16 - len(set(owned))
    pool.free(owned)
    assert pool.num_free == 16
