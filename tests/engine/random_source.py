"""Weights that nobody trained, quantized from the start: any shape and format, the same on every device."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from worker.engine.config import LlamaConfig, Quantization
from worker.engine.weights import Int8Weight, LinearWeight, NestedAbsmax, Nf4Weight


class RandomSource:
    """Weights that nobody trained: each from its own seed, made on one device and given on another."""

    def __init__(
        self, config: LlamaConfig, quantization: Quantization, device: torch.device, made_on: torch.device
    ) -> None:
        self._config, self._quantization = config, quantization
        self._device, self._made_on = device, made_on

    def vector(self, name: str) -> Tensor:
        """A norm."""
        return (torch.rand(self._config.hidden_size, generator=self._seeded(name), device=self._made_on) + 0.5).to(
            self._device
        )

    def matrix(self, name: str) -> Tensor:
        """The embedding, or a head whose logits spread widely."""
        shape = (self._config.vocab_size, self._config.hidden_size)
        values = torch.randn(shape, generator=self._seeded(name), device=self._made_on)
        scale = 1.0 if "embed" in name else 3 * self._config.hidden_size**-0.5
        return values.mul_(scale).half().to(self._device)

    def linear(self, module: str, shape: tuple[int, int]) -> LinearWeight:
        """A decoder's linear layer."""
        rows, columns = shape
        generator, where = self._seeded(module), self._made_on
        if self._quantization is Quantization.INT8:
            codes = torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator, device=where)
            row_absmax = (torch.rand(rows, generator=generator, device=where) + 1.5) * columns**-0.5
            return Int8Weight(codes.to(self._device), row_absmax.to(self._device))
        packed = torch.randint(0, 256, (rows * columns // 2,), dtype=torch.uint8, generator=generator, device=where)
        absmax = (torch.rand(rows * columns // 64, generator=generator, device=where) + 1.5) * columns**-0.5
        if self._quantization is Quantization.NF4:
            return Nf4Weight(packed.to(self._device), absmax.to(self._device), shape, 64)
        nested = NestedAbsmax(
            codes=(absmax * columns**0.5 * 64).to(torch.uint8).to(self._device),
            code_book=torch.arange(256, device=self._device) / 256,
            group_absmax=torch.full((-(-len(absmax) // 256),), 4 * columns**-0.5, device=self._device),
            offset=torch.tensor(1e-4, device=self._device),
            group_size=256,
        )
        return Nf4Weight(packed.to(self._device), nested, shape, 64)

    def _seeded(self, name: str) -> torch.Generator:
        return torch.Generator(self._made_on).manual_seed(zlib.crc32(name.encode()))
