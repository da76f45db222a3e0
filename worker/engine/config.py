"""What a model folder's config.json says, parsed once; refuses what the engine does not run. No torch."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class UnsupportedModel(ValueError):
    """The folder holds a model, or a way of storing one, that this engine does not run."""


class UnsupportedSetting(ValueError):
    """What was asked for does not go together with the device or the kernels that run there."""


class KVFormat(enum.Enum):
    """How the KV cache holds keys and values."""

    FLOAT = "float"
    """float16 on a GPU, float32 on the CPU."""
    INT8 = "int8"
    """8 bits a number, and one float32 for each position and head."""


class ActivationFormat(enum.Enum):
    """What the products of a long prefill multiply the weights with."""

    FLOAT = "float"
    """float16 on a GPU, float32 on the CPU."""
    INT8 = "int8"
    """8 bits a number, and one float32 for each token: rounded before each product."""


class Quantization(enum.Enum):
    """How the linear layers of the decoder are stored. Embedding and lm_head are never quantized here."""

    AS_SAVED = "as-saved"
    """As the checkpoint says: its quantization if it has one, else none."""
    NONE = "none"
    INT8 = "int8"
    """LLM.int8 bytes: int8 weights with one float32 absmax per output row."""
    NF4 = "nf4"
    """4-bit NormalFloat in blocks of 64 weights with one float32 absmax per block."""
    NF4_DQ = "nf4-dq"
    """NF4 whose absmax values are themselves quantized to 8 bits ("double quantization")."""


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """The shape of one Llama model.

    `dtype` is torch's name of the dtype the weights were saved for ("float16"), empty when the file does not say;
    `saved_quantization` is never AS_SAVED.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    dtype: str
    saved_quantization: Quantization

    @classmethod
    def from_folder(cls, folder: Path) -> LlamaConfig:
        """Read `folder/config.json`. Raises UnsupportedModel, or FileNotFoundError if there is no such file."""
        return cls.from_json(json.loads((folder / "config.json").read_text(encoding="utf-8")))

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> LlamaConfig:
        """Parse a decoded config.json of transformers 4 or 5. Raises UnsupportedModel."""
        _refuse_other_models(fields)
        hidden_size = _integer(fields, "hidden_size")
        num_heads = _integer(fields, "num_attention_heads")
        num_kv_heads = _integer(fields, "num_key_value_heads", num_heads)
        head_dim = _integer(fields, "head_dim", hidden_size // num_heads)
        if num_heads % num_kv_heads:
            raise UnsupportedModel(f"{num_heads} heads do not share {num_kv_heads} key-value heads evenly")
        if head_dim % 2:
            raise UnsupportedModel(f"head_dim is {head_dim}; rotary embedding needs an even one")
        return cls(
            hidden_size=hidden_size,
            intermediate_size=_integer(fields, "intermediate_size"),
            num_layers=_integer(fields, "num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=_integer(fields, "vocab_size"),
            max_position_embeddings=_integer(fields, "max_position_embeddings"),
            rms_norm_eps=_number(fields, "rms_norm_eps", 1e-6),
            rope_theta=_rope_theta(fields),
            tie_word_embeddings=bool(fields.get("tie_word_embeddings", False)),
            dtype=str(fields.get("dtype") or fields.get("torch_dtype") or ""),
            saved_quantization=_saved_quantization(fields),
        )

    def kv_bytes_per_block(self, block_size: int, bytes_per_value: int) -> int:
        """Bytes of keys and values that one block of `block_size` positions takes over all layers."""
        return 2 * self.num_layers * block_size * self.num_kv_heads * self.head_dim * bytes_per_value


def _refuse_other_models(fields: Mapping[str, object]) -> None:
    architectures = fields.get("architectures") or ["LlamaForCausalLM"]
    if fields.get("model_type") != "llama" or architectures != ["LlamaForCausalLM"]:
        raise UnsupportedModel(
            f"{architectures} of type {fields.get('model_type')!r}; this engine runs LlamaForCausalLM"
        )
    if fields.get("hidden_act", "silu") != "silu":
        raise UnsupportedModel(f"hidden_act is {fields['hidden_act']!r}; this engine has silu")
    for flag in ("attention_bias", "mlp_bias"):
        if fields.get(flag):
            raise UnsupportedModel(f"{flag} is set; this engine's linear layers have no bias")
    if fields.get("sliding_window") is not None:
        raise UnsupportedModel(
            f"sliding_window is {fields['sliding_window']}; this engine attends to the whole context"
        )


def _rope_theta(fields: Mapping[str, object]) -> float:
    """transformers 5 nests the angle base in `rope_parameters`; 4 has `rope_theta` beside `rope_scaling`."""
    for key in ("rope_parameters", "rope_scaling"):
        rope = fields.get(key)
        if rope is None:
            continue
        if not isinstance(rope, Mapping):
            raise UnsupportedModel(f"{key} is {rope!r}, not an object")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise UnsupportedModel(f"rotary embedding is scaled ({kind!r}); this engine has the default one")
        if "rope_theta" in rope:
            return _number(rope, "rope_theta", 10000.0)
    return _number(fields, "rope_theta", 10000.0)


def _saved_quantization(fields: Mapping[str, object]) -> Quantization:
    saved = fields.get("quantization_config")
    if saved is None:
        return Quantization.NONE
    if not isinstance(saved, Mapping):
        raise UnsupportedModel(f"quantization_config is {saved!r}, not an object")
    method = saved.get("quant_method", "bitsandbytes")
    if method != "bitsandbytes":
        raise UnsupportedModel(f"quantized by {method!r}; this engine reads bitsandbytes")
    if saved.get("load_in_8bit"):
        return Quantization.INT8
    if not saved.get("load_in_4bit"):
        raise UnsupportedModel("quantization_config asks for neither 8 nor 4 bits")
    if saved.get("bnb_4bit_quant_type") != "nf4":
        raise UnsupportedModel(f"4-bit type {saved.get('bnb_4bit_quant_type')!r}; this engine reads nf4")
    return Quantization.NF4_DQ if saved.get("bnb_4bit_use_double_quant") else Quantization.NF4


def _integer(fields: Mapping[str, object], key: str, default: int | None = None) -> int:
    value = fields.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedModel(f"{key} is {value!r}; it must be a positive integer")
    return value


def _number(fields: Mapping[str, object], key: str, default: float) -> float:
    value = fields.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise UnsupportedModel(f"{key} is {value!r}; it must be a positive number")
    return float(value)
