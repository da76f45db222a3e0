"""Write a Llama 2 folder of a named shape with random weights: the true size runs at the true speed.

    python -m bench.make_model 7b /tmp/llama-7b
    python -m bench.make_model 7b /tmp/llama-7b-int8 --quantization int8

Without --quantization it is in fp16, for `herd quantize`; with it, random bytes under the names that `herd quantize`
gives them, written at once. The tokenizer is the demo model's, filled up to 32,000 pieces, so that every id has a text.
"""

import argparse
import json
import struct
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor

from worker.engine.weights import NF4_CODES

DEMO_TOKENIZER = Path(__file__).parent.parent / "herd" / "demo_model" / "tokenizer.model"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SPREAD = 0.02  # of the weights
VOCABULARY = 32_000
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 256, "intermediate_size": 704, "layers": 2, "heads": 2, "kv_heads": 1},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "layers": 32, "heads": 32, "kv_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "layers": 40, "heads": 40, "kv_heads": 40},
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "layers": 80, "heads": 64, "kv_heads": 8},
}


def main() -> None:
    """Parse the arguments and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("out", type=Path)
    parser.add_argument("--quantization", choices=["none", "int8", "nf4"], default="none")
    arguments = parser.parse_args()
    write_folder(arguments.shape, arguments.out, arguments.quantization)


def write_folder(shape: str, out: Path, quantization: str) -> None:
    """One shard for each layer and one for what stands around them."""
    out.mkdir(parents=True)
    torch.manual_seed(0)
    size = SHAPES[shape]
    hidden, wide = size["hidden_size"], size["intermediate_size"]
    kv = hidden // size["heads"] * size["kv_heads"]
    linears = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }

    where: dict[str, str] = {}
    for layer in range(size["layers"] + 1):
        name = f"model-{layer:05}.safetensors"
        if layer < size["layers"]:
            prefix = f"model.layers.{layer}."
            tensors: dict[str, Tensor] = {}
            for part, dims in linears.items():
                tensors |= linear(f"{prefix}{part}", dims, quantization)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{prefix}{norm}.weight"] = torch.ones(hidden, dtype=torch.float16)
        else:
            tensors = {
                "model.embed_tokens.weight": normal(VOCABULARY, hidden),
                "lm_head.weight": normal(VOCABULARY, hidden),
                "model.norm.weight": torch.ones(hidden, dtype=torch.float16),
            }
        save_file(tensors, out / name, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, name)
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    _write_configs(size, out, quantization)
    (out / "tokenizer.model").write_bytes(padded_tokenizer())


def normal(rows: int, columns: int) -> Tensor:
    """fp16, as trained weights are spread."""
    return (torch.randn(rows, columns, device=DEVICE) * SPREAD).half().cpu()


def linear(module: str, shape: tuple[int, int], quantization: str) -> dict[str, Tensor]:
    """A decoder's linear layer by the names of its file."""
    rows, columns = shape
    weight = f"{module}.weight"
    if quantization == "none":
        return {weight: normal(rows, columns)}
    if quantization == "int8":
        codes = torch.randint(-127, 128, shape, dtype=torch.int8, device=DEVICE)
        absmax = torch.full((rows,), SPREAD * 3**0.5)
        return {
            weight: codes.cpu(),
            f"{module}.SCB": absmax,
            f"{module}.weight_format": torch.tensor(0).to(torch.uint8),
        }
    packed = torch.randint(0, 256, (rows * columns // 2, 1), dtype=torch.uint8, device=DEVICE)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": list(shape)}
    return {
        weight: packed.cpu(),
        f"{weight}.absmax": torch.full((rows * columns // 64,), SPREAD * 2),
        f"{weight}.quant_map": torch.tensor(NF4_CODES),
        f"{weight}.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }


def _write_configs(size: dict[str, int], out: Path, quantization: str) -> None:
    config: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": size["hidden_size"],
        "intermediate_size": size["intermediate_size"],
        "num_hidden_layers": size["layers"],
        "num_attention_heads": size["heads"],
        "num_key_value_heads": size["kv_heads"],
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if quantization != "none":
        bits = {"load_in_8bit": quantization == "int8", "load_in_4bit": quantization == "nf4"}
        four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False, "bnb_4bit_compute_dtype": "float16"}
        config["quantization_config"] = {"quant_method": "bitsandbytes", **bits, **four}
    (out / "config.json").write_text(json.dumps(config, indent=2))
    generation = {"bos_token_id": 1, "eos_token_id": 2, "do_sample": False}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2))


def padded_tokenizer() -> bytes:
    """The demo tokenizer's pieces, then `▁w0`, `▁w1`, … which no text is split into.

    Joined protobuf messages are one message: further pieces are appended as bytes. A piece is field 1 of the model:
    its text is field 1, its score (a float) field 2.
    """
    have = DEMO_TOKENIZER.read_bytes()
    added = []
    for number in range(VOCABULARY - _num_pieces(have)):
        text = f"▁w{number}".encode()
        piece = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", -1e6 - number)
        added.append(b"\x0a" + bytes([len(piece)]) + piece)
    return have + b"".join(added)


def _num_pieces(model: bytes) -> int:
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    return int(processor.GetPieceSize())


if __name__ == "__main__":
    main()
