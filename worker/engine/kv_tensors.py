"""The tensors of the paged KV cache: their size in bytes, writing new positions into them, and reading whole blocks."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from worker.engine.config import KVFormat, LlamaConfig

CPU_KV_BYTES = 256 << 20  # when the caller names no size
GPU_KV_FRACTION = 0.9  # of the memory that is free once the weights are there; the rest is for activations


def make_kv(
    config: LlamaConfig,
    kv_format: KVFormat,
    device: torch.device,
    *,
    kv_blocks: int | None,
    kv_bytes: int | None,
    block_size: int,
) -> KVCache:
    """An empty cache of `kv_blocks` blocks, or of `kv_bytes`, or of what is free; see `load_model`.

    Raises ValueError if not even one block fits.
    """
    on_cpu = device.type == "cpu"
    dtype = torch.float32 if on_cpu else torch.float16
    kind = kv_class(kv_format)
    if kv_blocks is None:
        if kv_bytes is None:
            kv_bytes = CPU_KV_BYTES if on_cpu else free_gpu_bytes(device, GPU_KV_FRACTION)
        bytes_per_block = kind.bytes_per_block(config, block_size, dtype)
        if kv_bytes < bytes_per_block:
            raise ValueError(f"{kv_bytes} bytes of KV cache hold no block; one takes {bytes_per_block}")
        kv_blocks = kv_bytes // bytes_per_block
    return kind(config, num_blocks=kv_blocks, block_size=block_size, dtype=dtype, device=device)


def kv_class(kv_format: KVFormat) -> type[KVTensors] | type[Int8KVTensors]:
    """What holds a cache of that format."""
    return Int8KVTensors if kv_format is KVFormat.INT8 else KVTensors


def free_gpu_bytes(device: torch.device, fraction: float) -> int:
    """`fraction` of the GPU memory that is free now, torch's own unused reserve counted as free.

    Where torch may fill only a share of the GPU (`set_per_process_memory_fraction`), of what is left of that share.
    """
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    share = int(total * torch.cuda.get_per_process_memory_fraction(device))
    return int(max(0, min(free, share - torch.cuda.memory_reserved(device))) * fraction)


class KVTensors:
    """Keys and values of every layer as they are, each [num_blocks, block_size, kv heads, D] in `dtype`.

    Invariant: within the blocks of a sequence, positions not yet written are zero, so that a masked position of a
    sequence can never carry another sequence's NaN into it.
    """

    def __init__(
        self, config: LlamaConfig, *, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_kv_heads = config.num_kv_heads
        self.dtype = dtype
        shape = (num_blocks, block_size, config.num_kv_heads, config.head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]

    @staticmethod
    def bytes_per_block(config: LlamaConfig, block_size: int, dtype: torch.dtype) -> int:
        """Over all layers."""
        return config.kv_bytes_per_block(block_size, dtype.itemsize)

    def write(self, layer: int, key: Tensor, value: Tensor, slots: Tensor, fresh_blocks: Tensor) -> None:
        """Store [T, kv heads, D] keys and values.

        Args:
            slots: [T] int64, block * block_size + offset of every new position.
            fresh_blocks: int64 ids of the blocks whose first position is among them; the rest of each is zeroed.
        """
        for cache, new in ((self.keys[layer], key), (self.values[layer], value)):
            _store(cache, new.to(cache.dtype), slots, fresh_blocks)

    def read(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of the keys and the values of blocks, each [*blocks, block_size, kv heads, D] in `dtype`."""
        return _blocks_of(self.keys[layer], blocks), _blocks_of(self.values[layer], blocks)

    def scales(self, _: int) -> tuple[Tensor, Tensor] | None:
        """None: the numbers are what they are."""
        return None


class Int8KVTensors:
    """The same in 8 bits: number = code * scale, with a scale for each position and head.

    `keys` and `values` are [num_blocks, block_size, kv heads, D] int8, `key_scales` and `value_scales`
    [num_blocks, kv heads, block_size] float32: those of one head lie together, as a kernel reads them. A scale is the
    largest number of its position and head over 127, so no number is off by more than 1/254 of that one, and what is
    not finite stays so. A position is rounded once, by itself: prefill, decode, chunking and batch make no difference
    to its codes.

    Args:
        dtype: of what `read` returns.
    """

    def __init__(
        self, config: LlamaConfig, *, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_kv_heads = config.num_kv_heads
        self.dtype = dtype
        shape = (num_blocks, block_size, config.num_kv_heads, config.head_dim)
        layers = range(config.num_layers)
        self.keys = [torch.zeros(shape, dtype=torch.int8, device=device) for _ in layers]
        self.values = [torch.zeros(shape, dtype=torch.int8, device=device) for _ in layers]
        scales_shape = (num_blocks, config.num_kv_heads, block_size)
        self.key_scales = [torch.zeros(scales_shape, device=device) for _ in layers]
        self.value_scales = [torch.zeros(scales_shape, device=device) for _ in layers]

    @staticmethod
    def bytes_per_block(config: LlamaConfig, block_size: int, _: torch.dtype) -> int:
        """Over all layers, scales included."""
        num_scales = 2 * config.num_layers * block_size * config.num_kv_heads
        return config.kv_bytes_per_block(block_size, 1) + 4 * num_scales

    def write(self, layer: int, key: Tensor, value: Tensor, slots: Tensor, fresh_blocks: Tensor) -> None:
        """As KVTensors.write."""
        for cache, scales, new in (
            (self.keys[layer], self.key_scales[layer], key.float()),
            (self.values[layer], self.value_scales[layer], value.float()),
        ):
            scale = new.abs().amax(-1) / 127
            codes = (new / scale.clamp(min=torch.finfo(torch.float32).tiny)[..., None]).round().to(torch.int8)
            _store(cache, codes, slots, fresh_blocks)
            if fresh_blocks.numel():
                scales.index_fill_(0, fresh_blocks, 0)
            scales[slots // self.block_size, :, slots % self.block_size] = scale

    def read(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """As KVTensors.read."""
        keys, values = (
            _blocks_of(cache[layer], blocks).float().mul_(_blocks_of(of, blocks).mT[..., None]).to(self.dtype)
            for cache, of in zip((self.keys, self.values), self.scales(layer), strict=True)
        )
        return keys, values

    def scales(self, layer: int) -> tuple[Tensor, Tensor]:
        """Of the keys and of the values."""
        return self.key_scales[layer], self.value_scales[layer]


KVCache: TypeAlias = KVTensors | Int8KVTensors


def _store(cache: Tensor, new: Tensor, slots: Tensor, fresh_blocks: Tensor) -> None:
    """Write `new` [T, ...] to the slots of a cache [num_blocks, block_size, ...]; see KVTensors.write."""
    if fresh_blocks.numel():
        cache.index_fill_(0, fresh_blocks, 0)
    cache.view(-1, *cache.shape[2:]).index_copy_(0, slots, new)


def _blocks_of(cache: Tensor, blocks: Tensor) -> Tensor:
    return cache.index_select(0, blocks.reshape(-1)).view(*blocks.shape, *cache.shape[1:])
