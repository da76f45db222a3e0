"""A compact Llama for training: parameters named as transformers names them, packed dialogues, NF4 noise.

Letters: N tokens of a packed batch, H query heads, G key/value heads, D head size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

# The sixteen levels of NF4: Dettmers et al. 2023, arXiv:2305.14314, appendix E.
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
NF4_BLOCK = 64
_MAX_DIALOGUE = 1024  # no packed dialogue is longer


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of the demo model; every dimension is a multiple of 64."""

    vocab_size: int = 1280
    hidden_size: int = 256
    intermediate_size: int = 448
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    max_positions: int = 1024
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


class QuantizableLinear(nn.Linear):
    """A linear layer without bias whose weight may be seen as NF4 would store it; gradients pass straight through."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor, nf4_share: Tensor | None = None) -> Tensor:
        """`nf4_share` is a scalar: 0 for the weight itself, 1 for its NF4 form."""
        weight = self.weight
        if nf4_share is not None:
            weight = weight + nf4_share * (as_nf4(weight.detach()) - weight.detach())
        return F.linear(x, weight)


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        hidden, width, kv_width = (
            shape.hidden_size,
            shape.num_heads * shape.head_dim,
            shape.num_kv_heads * shape.head_dim,
        )
        self.q_proj = QuantizableLinear(hidden, width)
        self.k_proj = QuantizableLinear(hidden, kv_width)
        self.v_proj = QuantizableLinear(hidden, kv_width)
        self.o_proj = QuantizableLinear(width, hidden)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], bounds: Tensor, attend: Attention, nf4: Tensor | None
    ) -> Tensor:
        """x [N, hidden] → [N, hidden]; `bounds` as for `attend_varlen`."""
        heads, kv_heads, head_dim = self.shape.num_heads, self.shape.num_kv_heads, self.shape.head_dim
        query = _rotate(self.q_proj(x, nf4).view(-1, heads, head_dim), rope)
        key = _rotate(self.k_proj(x, nf4).view(-1, kv_heads, head_dim), rope)
        value = self.v_proj(x, nf4).view(-1, kv_heads, head_dim)
        group = heads // kv_heads
        mixed = attend(query, key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1), bounds)
        out: Tensor = self.o_proj(mixed.reshape(x.shape[0], -1), nf4)
        return out


class Mlp(nn.Module):
    """The gated feed-forward part."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = QuantizableLinear(shape.hidden_size, shape.intermediate_size)
        self.up_proj = QuantizableLinear(shape.hidden_size, shape.intermediate_size)
        self.down_proj = QuantizableLinear(shape.intermediate_size, shape.hidden_size)

    def forward(self, x: Tensor, nf4: Tensor | None) -> Tensor:
        """x [N, hidden] → [N, hidden]."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x, nf4)) * self.up_proj(x, nf4), nf4)
        return out


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = SelfAttention(shape)
        self.mlp = Mlp(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], bounds: Tensor, attend: Attention, nf4: Tensor | None
    ) -> Tensor:
        """x [N, hidden] → [N, hidden]."""
        x = x + self.self_attn(self.input_layernorm(x), rope, bounds, attend, nf4)
        fed: Tensor = self.mlp(self.post_attention_layernorm(x), nf4)
        return x + fed


class Decoder(nn.Module):
    """What transformers calls `model`: embeddings, layers, last norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)


class CompactLlama(nn.Module):
    """Llama over packed dialogues; its input and output embeddings are one matrix."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        self._init_weights()

    def forward(
        self, tokens: Tensor, positions: Tensor, labels: Tensor, bounds: Tensor, attend: Attention, nf4: Tensor | None
    ) -> Tensor:
        """Mean cross entropy over labelled positions. tokens, positions, labels [N] int64; label -100 is ignored."""
        decoder = self.model
        x = decoder.embed_tokens(tokens)
        rope = _rope(positions, self.shape)
        for layer in decoder.layers:
            x = layer(x, rope, bounds, attend, nf4)
        logits = F.linear(decoder.norm(x), decoder.embed_tokens.weight)
        loss: Tensor = F.cross_entropy(logits.float(), labels, ignore_index=-100)
        return loss

    def _init_weights(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * self.shape.num_layers) if is_output else 1.0))


def as_nf4(weight: Tensor) -> Tensor:
    """The weight after a trip through NF4: blocks of 64 along a row, each scaled by its largest value."""
    blocks = weight.reshape(-1, NF4_BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True).clamp_min(1e-8)
    levels = torch.tensor(NF4_LEVELS, device=weight.device, dtype=weight.dtype)
    middles = (levels[1:] + levels[:-1]) / 2
    return (levels[torch.bucketize(blocks / scale, middles)] * scale).reshape(weight.shape)


def attend_each(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor) -> Tensor:
    """Causal attention inside each dialogue, one after the other. [N, H, D] each; `bounds` as for `attend_varlen`."""
    lengths = bounds.diff().tolist()
    split = [torch.split(part.transpose(0, 1)[None], lengths, dim=2) for part in (query, key, value)]
    mixed = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True) for q, k, v in zip(*split, strict=True) if q.shape[2]
    ]
    return torch.cat(mixed, dim=2)[0].transpose(0, 1)


def attend_varlen(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor) -> Tensor:
    """The same at once, by torch's variable-length flash attention (CUDA only).

    `bounds` int32: where each dialogue begins, then N, repeated up to a fixed length.
    """
    mixed = varlen_attn(query, key, value, bounds, bounds, _MAX_DIALOGUE, _MAX_DIALOGUE, window_size=(-1, 0))
    assert isinstance(mixed, Tensor)
    return mixed


def _rope(positions: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    steps = torch.arange(0, shape.head_dim, 2, device=positions.device, dtype=torch.float32) / shape.head_dim
    angles = positions.float()[:, None] * shape.rope_theta**-steps
    angles = torch.cat((angles, angles), dim=-1)[:, None, :]
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding in the half-split order of transformers' Llama. x [N, heads, D]."""
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)
