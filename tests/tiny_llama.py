"""A Llama 2 of 64 dimensions with random weights, as a whole Hugging Face folder: another model beside the demo one."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.tokenizer_models import train_llama2_like, write_json, write_model_folder

HIDDEN, WIDE, LAYERS, HEADS, KV_HEADS = 64, 96, 2, 4, 2  # of write_model_folder's config.json
VOCABULARY = 900


def write_tiny_llama(folder: Path, seed: int = 1) -> Path:
    """Write the folder; the same seed gives the same model. It is greedy by default, and 256 tokens long."""
    source = torch.Generator().manual_seed(seed)
    kv = HIDDEN // HEADS * KV_HEADS
    linears = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (kv, HIDDEN),
        "self_attn.v_proj": (kv, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (WIDE, HIDDEN),
        "mlp.up_proj": (WIDE, HIDDEN),
        "mlp.down_proj": (HIDDEN, WIDE),
    }

    def normal(*dims: int) -> torch.Tensor:
        return (torch.randn(*dims, generator=source) * 0.2).half()

    tensors = {"model.embed_tokens.weight": normal(VOCABULARY, HIDDEN), "lm_head.weight": normal(VOCABULARY, HIDDEN)}
    tensors["model.norm.weight"] = torch.ones(HIDDEN, dtype=torch.float16)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        tensors |= {f"{prefix}{part}.weight": normal(*dims) for part, dims in linears.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = torch.ones(HIDDEN, dtype=torch.float16)
    write_model_folder(folder, train_llama2_like(VOCABULARY))
    write_json(folder / "generation_config.json", {"do_sample": False, "eos_token_id": 2})
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
