"""The Llama forward pass over a paged KV cache. Knows neither the device nor how weights are stored.

Source: Touvron et al. 2023, arXiv:2307.09288; grouped-query attention, Ainslie et al. 2023, arXiv:2305.13245.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.engine.attention import Attention, StepPlan, plan_step
from worker.engine.batch import SequenceSlice
from worker.engine.config import LlamaConfig
from worker.engine.device_probe import probe_device
from worker.engine.kv_tensors import KVCache
from worker.engine.linear import Linear
from worker.engine.model_graphs import StepGraphs
from worker.engine.rowwise import PlainRowwise, Rowwise

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LlamaLayer:
    """One decoder layer. Norm weights are [hidden] float32; rows of `qkv` are all of q, then k, then v."""

    attention_norm: Tensor
    qkv: Linear
    attention_out: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class LlamaWeights:
    """Everything a model has learned, on its device. `embedding` is [V, hidden]."""

    embedding: Tensor
    layers: tuple[LlamaLayer, ...]
    final_norm: Tensor
    lm_head: Linear


class LlamaModel:
    """A Llama with its KV cache: runs the slices of a step. The engine's `ForwardModel`.

    Args:
        kernels: whose kernels `weights`, `attention` and `rowwise` run, for the log.
        rowwise: what is neither product nor attention.
        captures: whether steps in which every sequence has one token run as CUDA graphs, captured now: `attention`, the
            products and the rest then queue kernels that depend on the shapes alone, and wait for nothing. What cannot
            be captured is warned of, and runs without.
        progress: called with the fraction captured, rising.
    """

    def __init__(
        self,
        config: LlamaConfig,
        weights: LlamaWeights,
        kv: KVCache,
        attention: Attention,
        kernels: str,
        *,
        rowwise: Rowwise | None = None,
        captures: bool = False,
        progress: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.config = config
        self.kernels = kernels
        self.kv = kv
        self.block_size = kv.block_size
        self.num_blocks = kv.num_blocks
        self.max_context = min(config.max_position_embeddings, kv.num_blocks * kv.block_size)
        self.vocab_size = config.vocab_size
        self._weights = weights
        self._attention = attention
        self._rowwise = rowwise or PlainRowwise()
        self._device = weights.embedding.device
        self._cos, self._sin = rotary_tables(config, self.max_context, self._device)
        self._graphs: StepGraphs | None = None
        if captures:
            try:
                self._graphs = StepGraphs(self._run, kv, self.max_context, self.vocab_size, self._device, progress)
            except Exception as error:  # of memory or a driver: there is no common one
                log.warning(
                    "no CUDA graphs on %s, so decode steps are queued one by one, slower: %s", self._device, error
                )

    @torch.inference_mode()
    def forward(self, slices: Sequence[SequenceSlice]) -> Tensor:
        """Run the slices, write their keys and values, and return the logits that are wanted.

        Returns:
            [sum of the slices' `num_logit_rows`, V] float32, in slice order, on the model's device.
        """
        if self._graphs is not None and self._graphs.takes(slices):
            return self._graphs.run(slices)
        return self._run(plan_step(slices, self.block_size, self._device))

    def _run(self, plan: StepPlan) -> Tensor:
        cos, sin = self._cos[plan.positions], self._sin[plan.positions]
        eps, rowwise = self.config.rms_norm_eps, self._rowwise
        x = F.embedding(plan.token_ids, self._weights.embedding).float()  # the residual stream: [T, hidden] float32
        for index, layer in enumerate(self._weights.layers):
            query, key, value = self._split_heads(layer.qkv(rowwise.norm(x, layer.attention_norm, eps)))
            self.kv.write(index, rowwise.rotate(key, cos, sin), value, plan.slots, plan.fresh_blocks)
            mixed = self._attention(index, rowwise.rotate(query, cos, sin), plan)
            x = x + layer.attention_out(mixed.flatten(1))
            x = x + layer.down(rowwise.gate(layer.gate_up(rowwise.norm(x, layer.mlp_norm, eps))))
        if not plan.logit_rows.numel():
            return x.new_empty(0, self.vocab_size)
        return self._weights.lm_head(rowwise.norm(x[plan.logit_rows], self._weights.final_norm, eps)).float()

    def probe(self) -> None:
        """Compute something tiny on the device; see probe_device."""
        probe_device(self._device)

    def _split_heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[T, (H + 2 kv heads) * D] to queries [T, H, D], keys and values [T, kv heads, D]."""
        heads = qkv.view(qkv.shape[0], -1, self.config.head_dim)
        num_kv_heads = self.config.num_kv_heads
        query, key, value = torch.split(heads, [self.config.num_heads, num_kv_heads, num_kv_heads], dim=1)
        return query, key, value


def rotary_tables(config: LlamaConfig, num_positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [num_positions, D/2] float32, computed on the CPU for every device."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), 1.0 / config.rope_theta**exponents)
    return angles.cos().to(device), angles.sin().to(device)
