"""Both ways to attend give plain causal attention over each sequence's own blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from worker.engine.attention import GatheredAttention, TiledAttention, plan_step
from worker.engine.batch import SequenceSlice
from worker.engine.config import LlamaConfig, Quantization
from worker.engine.kv_tensors import KVTensors

CPU = torch.device("cpu")
# (positions already in the cache, new tokens): decode and prefill, around the edges of blocks and tiles
SPANS = [(0, 1), (0, 5), (127, 1), (15, 1), (120, 20), (0, 140), (128, 1), (300, 1), (299, 33)]


def small_config(num_heads: int, num_kv_heads: int) -> LlamaConfig:
    """One layer with heads of 8."""
    return LlamaConfig(
        hidden_size=8 * num_heads,
        intermediate_size=8,
        num_layers=1,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=8,
        vocab_size=8,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        dtype="",
        saved_quantization=Quantization.NONE,
    )


def expected(query: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
    """[T, H, D] queries at `start` over contiguous [S, kv heads, D] keys and values."""
    sharing = query.shape[1] // keys.shape[1]
    keys, values = (part.repeat_interleave(sharing, 1).transpose(0, 1) for part in (keys, values))
    visible = torch.arange(keys.shape[1]) <= torch.arange(start, start + query.shape[0])[:, None]
    return F.scaled_dot_product_attention(query.transpose(0, 1), keys, values, attn_mask=visible).transpose(0, 1)


@pytest.mark.parametrize("kind", [TiledAttention, GatheredAttention])
@pytest.mark.parametrize("block_size", [16, 64])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (6, 2), (4, 1)])
def test_attention_is_causal_attention_over_the_blocks(
    kind: type[TiledAttention] | type[GatheredAttention], block_size: int, num_heads: int, num_kv_heads: int
) -> None:
    """Slices of all kinds in one step; the blocks of a sequence are scattered over the cache."""
    generator = torch.Generator().manual_seed(num_heads)
    wanted = [-(-(start + new) // block_size) for start, new in SPANS]
    shuffled = torch.randperm(sum(wanted), generator=generator).tolist()
    tables = [[shuffled.pop() for _ in range(count)] for count in wanted]
    config = small_config(num_heads, num_kv_heads)
    kv = KVTensors(config, num_blocks=sum(wanted), block_size=block_size, dtype=torch.float32, device=CPU)
    slices = [SequenceSlice([1] * new, start, table, True) for (start, new), table in zip(SPANS, tables, strict=True)]
    answers, queries = [], []
    for (start, new), table in zip(SPANS, tables, strict=True):
        keys, values = torch.randn(2, start + new, num_kv_heads, 8, generator=generator)
        queries.append(torch.randn(new, num_heads, 8, generator=generator))
        whole = plan_step([SequenceSlice([1] * (start + new), 0, table, True)], block_size, CPU)
        kv.write(0, keys, values, whole.slots, whole.fresh_blocks)
        answers.append(expected(queries[-1], keys, values, start))

    found = kind(kv)(0, torch.cat(queries), plan_step(slices, block_size, CPU))

    assert torch.allclose(found, torch.cat(answers), atol=1e-5)


def test_writing_the_first_position_of_a_block_clears_the_rest_of_it() -> None:
    """And writing a later one leaves what is there."""
    kv = KVTensors(small_config(2, 2), num_blocks=3, block_size=16, dtype=torch.float32, device=CPU)
    kv.keys[0].fill_(torch.nan)
    first, second = (
        plan_step([SequenceSlice([1] * new, start, [2, 0], True)], 16, CPU) for start, new in ((0, 15), (15, 3))
    )

    kv.write(0, torch.ones(15, 2, 8), torch.ones(15, 2, 8), first.slots, first.fresh_blocks)
    kv.write(0, torch.full((3, 2, 8), 2.0), torch.ones(3, 2, 8), second.slots, second.fresh_blocks)

    assert kv.keys[0][2, :, 0, 0].tolist() == [1.0] * 15 + [2.0]
    assert kv.keys[0][0, :, 0, 0].tolist() == [2.0] * 2 + [0.0] * 14
    assert kv.keys[0][1].isnan().all()
