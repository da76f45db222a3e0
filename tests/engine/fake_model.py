"""A model for tests: its logits are a hash of what its paged KV cache holds, so a wrong block shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from worker.engine.batch import SequenceSlice
from worker.engine.detokenizer import PieceKind, TokenPieces

BOS_ID = 1
EOS_ID = 2
FIRST_BYTE_ID = 3
WORDS = ("\u2581", "\u2581the", "\u2581a", "en", "d", "ST", "OP", "\n", "\u00e9", "\u4f60\u597d", "\U0001f600", "x")
FIRST_WORD_ID = FIRST_BYTE_ID + 256
VOCAB_SIZE = FIRST_WORD_ID + len(WORDS)

_EMPTY = -1


def byte_fallback_pieces() -> TokenPieces:
    """A small Llama-like vocabulary: three control tokens, 256 bytes, then `WORDS`."""
    vocab = [(piece, PieceKind.CONTROL) for piece in ("<unk>", "<s>", "</s>")]
    vocab += [(f"<0x{byte:02X}>", PieceKind.BYTE) for byte in range(256)]
    vocab += [(piece, PieceKind.NORMAL) for piece in WORDS]
    return TokenPieces.from_vocab(vocab)


def byte_ids(text: str) -> list[int]:
    """The byte-fallback tokens of a text."""
    return [FIRST_BYTE_ID + byte for byte in text.encode()]


class FakeModel:
    """Stores token ids as its "keys and values", through the block table, and hashes what it reads back.

    A sequence that contains `crash_id` raises in `forward`; one that contains `nan_id` has NaN logits.
    """

    def __init__(
        self,
        *,
        block_size: int = 4,
        num_blocks: int = 64,
        max_context: int = 128,
        crash_id: int | None = None,
        nan_id: int | None = None,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.max_context = max_context
        self.vocab_size = VOCAB_SIZE
        self.crash_id = crash_id
        self.nan_id = nan_id
        self.batches: list[list[SequenceSlice]] = []
        self._cache = np.full((num_blocks, block_size), _EMPTY, dtype=np.int64)

    def probe(self) -> None:
        """There is no device to lose."""

    def forward(self, slices: Sequence[SequenceSlice]) -> torch.Tensor:
        """See `ForwardModel.forward`."""
        self.batches.append(list(slices))
        assert slices, "an empty batch"
        self._require_private_writes(slices)
        for slice_ in slices:
            self._write(slice_)
        contents = [self._read(slice_) for slice_ in slices]
        if any(self.crash_id in content for content in contents):
            raise RuntimeError("the fake device ran out of memory")
        rows = [
            self._logits(content[: len(content) - behind])
            for content, slice_ in zip(contents, slices, strict=True)
            for behind in reversed(range(slice_.num_logit_rows))
        ]
        return torch.from_numpy(np.array(rows, dtype=np.float32).reshape(len(rows), VOCAB_SIZE))

    def _require_private_writes(self, slices: Sequence[SequenceSlice]) -> None:
        users = Counter(block for slice_ in slices for block in set(slice_.block_table))
        for slice_ in slices:
            last = (slice_.start + len(slice_.token_ids) - 1) // self.block_size
            for block in slice_.block_table[slice_.start // self.block_size : last + 1]:
                assert users[block] == 1, "a block that is written is in another slice"

    def _write(self, slice_: SequenceSlice) -> None:
        assert len(slice_.token_ids) >= 1
        for position, token_id in enumerate(slice_.token_ids, start=slice_.start):
            assert position < self.max_context, "the context is exceeded"
            block = slice_.block_table[position // self.block_size]
            self._cache[block, position % self.block_size] = token_id

    def _read(self, slice_: SequenceSlice) -> list[int]:
        end = slice_.start + len(slice_.token_ids)
        content: list[int] = self._cache[list(slice_.block_table)].reshape(-1)[:end].tolist()
        assert _EMPTY not in content, "a position was read that nobody wrote"
        return content

    def _logits(self, content: Sequence[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        if self.nan_id in content:
            return np.full(VOCAB_SIZE, np.nan)
        state = 0
        for token_id in content:
            state = (state * 6364136223846793005 + token_id + 1442695040888963407) % 2**64
        noise = np.random.Generator(np.random.Philox(state)).normal(scale=2.0, size=VOCAB_SIZE)
        noise[FIRST_WORD_ID:] += 7.0  # mostly words, sometimes bytes
        noise[EOS_ID] += 5.0
        return noise
