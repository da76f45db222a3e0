"""The tensors of the paged KV cache: their size in bytes, and writing new positions into them."""

from __future__ import annotations

import torch
from torch import Tensor

from worker.engine.config import LlamaConfig


def num_blocks_in(config: LlamaConfig, kv_bytes: int, block_size: int, dtype: torch.dtype) -> int:
    """Blocks of the KV cache that `kv_bytes` hold. Raises ValueError if not even one fits."""
    bytes_per_block = config.kv_bytes_per_block(block_size, dtype.itemsize)
    if kv_bytes < bytes_per_block:
        raise ValueError(f"{kv_bytes} bytes of KV cache hold no block; one takes {bytes_per_block}")
    return kv_bytes // bytes_per_block


def free_gpu_bytes(device: torch.device, fraction: float) -> int:
    """`fraction` of the GPU memory that is free now, torch's own unused reserve counted as free.

    Where torch may fill only a share of the GPU (`set_per_process_memory_fraction`), of what is left of that share.
    """
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    share = int(total * torch.cuda.get_per_process_memory_fraction(device))
    return int(max(0, min(free, share - torch.cuda.memory_reserved(device))) * fraction)


class KVTensors:
    """Keys and values of every layer, each [num_blocks, block_size, kv heads, D].

    Invariant: within the blocks of a sequence, positions not yet written are zero, so that a masked position of a
    sequence can never carry another sequence's NaN into it.
    """

    def __init__(
        self, config: LlamaConfig, *, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.dtype = dtype
        shape = (num_blocks, block_size, config.num_kv_heads, config.head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]

    def write(self, layer: int, key: Tensor, value: Tensor, slots: Tensor, fresh_blocks: Tensor) -> None:
        """Store [T, kv heads, D] keys and values.

        Args:
            slots: [T] int64, block * block_size + offset of every new position.
            fresh_blocks: int64 ids of the blocks whose first position is among them; the rest of each is zeroed.
        """
        for cache, new in ((self.keys[layer], key), (self.values[layer], value)):
            if fresh_blocks.numel():
                cache.index_fill_(0, fresh_blocks, 0)
            cache.view(-1, *cache.shape[2:]).index_copy_(0, slots, new.to(cache.dtype))
