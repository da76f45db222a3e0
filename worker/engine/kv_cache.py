"""Which blocks of the paged KV cache are free, and how many owners each of the others has. No torch."""

from __future__ import annotations

from collections.abc import Iterable


class OutOfBlocks(Exception):
    """More blocks were asked for than are free."""


class BlockPool:
    """Hands out the physical blocks 0 .. num_blocks - 1.

    A block belongs to whoever allocated it until freed; `share` adds an owner, and each owner frees once.
    Invariant: a block is in the free list exactly when its reference count is 0.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks is {num_blocks}; it must be at least 1")
        self._num_references = [0] * num_blocks
        self._free = list(reversed(range(num_blocks)))  # a stack: low blocks first, a freed one next

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        return len(self._num_references)

    @property
    def num_free(self) -> int:
        """Blocks that nobody refers to."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks, each with one reference. Raises OutOfBlocks, and then takes none."""
        if count > len(self._free):
            raise OutOfBlocks(f"{count} blocks asked for; {len(self._free)} of {self.num_blocks} are free")
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._num_references[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Add a reference to each block. Raises ValueError for a free block."""
        for block in blocks:
            self._require_allocated(block)
            self._num_references[block] += 1

    def free(self, blocks: Iterable[int]) -> None:
        """Drop a reference to each block; the last one makes it free. Raises ValueError for a free block."""
        for block in blocks:
            self._require_allocated(block)
            self._num_references[block] -= 1
            if self._num_references[block] == 0:
                self._free.append(block)

    def num_references(self, block: int) -> int:
        """How many owners the block has; 0 when free."""
        return self._num_references[block]

    def check(self) -> None:
        """Raise AssertionError unless free and referenced blocks together are all blocks, each once."""
        free = set(self._free)
        referenced = {block for block, count in enumerate(self._num_references) if count > 0}
        assert len(free) == len(self._free), "a block is twice in the free list"
        assert all(count >= 0 for count in self._num_references), "a reference count is negative"
        assert not free & referenced, f"blocks {sorted(free & referenced)} are free and referenced"
        assert len(free) + len(referenced) == self.num_blocks, "a block is neither free nor referenced"

    def _require_allocated(self, block: int) -> None:
        if self._num_references[block] == 0:
            raise ValueError(f"block {block} is not allocated")
