"""Generates the training corpus on all cores and packs it into flat arrays of token ids and labels."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt

from training.chat_format import ChatEncoder
from training.corpus import draw_training

_SHARD_DIALOGUES = 20_000


@dataclass(frozen=True, slots=True)
class PackedCorpus:
    """Dialogues one after the other: `tokens` and `labels` [N] uint16, `starts` [D + 1] where each begins, and N."""

    tokens: npt.NDArray[np.uint16]
    labels: npt.NDArray[np.uint16]
    starts: npt.NDArray[np.int64]


def pack(tokenizer_file: Path, num_dialogues: int, seed: int, max_tokens: int, num_processes: int) -> PackedCorpus:
    """Draw `num_dialogues` from the mixture, in shards with seeds of their own, so that processes do not matter.

    Dialogues of more than `max_tokens` are left out.
    """
    num_shards = max(1, num_dialogues // _SHARD_DIALOGUES)
    size = num_dialogues // num_shards
    jobs = [(tokenizer_file, size, f"{seed}/{shard}", max_tokens) for shard in range(num_shards)]
    if num_processes == 1:
        shards = [_pack_shard(*job) for job in jobs]
    else:
        with ProcessPoolExecutor(num_processes) as pool:
            shards = list(pool.map(_pack_shard, *zip(*jobs, strict=True)))
    lengths = np.concatenate([shard[2] for shard in shards])
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return PackedCorpus(np.concatenate([s[0] for s in shards]), np.concatenate([s[1] for s in shards]), starts)


def _pack_shard(
    tokenizer_file: Path, num_dialogues: int, seed: str, max_tokens: int
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
    encoder, rng = ChatEncoder(tokenizer_file), Random(seed)
    tokens: list[int] = []
    labels: list[int] = []
    lengths: list[int] = []
    for _ in range(num_dialogues):
        ids, targets = encoder.example(draw_training(rng))
        if len(ids) <= max_tokens:
            tokens += ids
            labels += targets
            lengths.append(len(ids))
    return np.array(tokens, np.uint16), np.array(labels, np.uint16), np.array(lengths, np.int64)
