"""A folder that the engine cannot run is refused by name, before anything is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from worker.engine.attention import make_attention
from worker.engine.checkpoint import BrokenCheckpoint, Checkpoint
from worker.engine.config import LlamaConfig, Quantization, UnsupportedModel
from worker.engine.kv_tensors import KVTensors
from worker.engine.loader import load_model

CPU = torch.device("cpu")
LLAMA_7B: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
BNB: dict[str, object] = {"quant_method": "bitsandbytes", "load_in_8bit": False, "load_in_4bit": True}


def test_llama_2_7b_is_read() -> None:
    """Meta's own config.json, where what is absent has Llama's defaults."""
    config = LlamaConfig.from_json(LLAMA_7B)

    assert (config.head_dim, config.rope_theta, config.tie_word_embeddings, config.dtype) == (128, 10000.0, False, "")
    assert config.saved_quantization is Quantization.NONE
    assert config.kv_bytes_per_block(block_size=16, bytes_per_value=2) == 16 * 512 * 1024


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM"),
        ({"model_type": "qwen2"}, "qwen2"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "'llama3'"),
        ({"rope_scaling": "dynamic"}, "not an object"),
        ({"num_key_value_heads": 5}, "32 heads do not share 5"),
        ({"head_dim": 65}, "head_dim is 65"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers is '32'"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"quantization_config": BNB | {"bnb_4bit_quant_type": "fp4"}}, "fp4"),
        ({"quantization_config": BNB | {"load_in_4bit": False}}, "neither 8 nor 4"),
        ({"quantization_config": "8bit"}, "not an object"),
    ],
    ids=str,
)
def test_a_model_that_the_engine_does_not_run_is_refused(change: dict[str, object], message: str) -> None:
    """The message names the setting and its value."""
    with pytest.raises(UnsupportedModel, match=message):
        LlamaConfig.from_json(LLAMA_7B | change)


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, Quantization.INT8),
        (BNB | {"bnb_4bit_quant_type": "nf4"}, Quantization.NF4),
        (BNB | {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, Quantization.NF4_DQ),
    ],
)
def test_the_saved_quantization_is_recognized(saved: dict[str, object], expected: Quantization) -> None:
    """The three ways in which transformers saves with bitsandbytes."""
    assert LlamaConfig.from_json(LLAMA_7B | {"quantization_config": saved}).saved_quantization is expected


def test_pickles_are_refused(tmp_path: Path) -> None:
    """A .bin file can run code; the message says what to do."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"")

    with pytest.raises(UnsupportedModel, match="convert it to safetensors"):
        Checkpoint(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    """The message names the files that were looked for."""
    with pytest.raises(BrokenCheckpoint, match=r"model\.safetensors\.index\.json"):
        Checkpoint(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    """A download that stopped half-way."""
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(BrokenCheckpoint, match=r"lacks 1 of 2 shards: two\.safetensors"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 13476\n", "git lfs pull"),
        (b"\x40\x00\x00\x00\x00\x00\x00\x00{", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_a_file_that_holds_no_tensors_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    """A clone without its large files, a download that stopped."""
    (tmp_path / "model.safetensors").write_bytes(content)

    with pytest.raises(BrokenCheckpoint, match=rf"model\.safetensors .*{message}"):
        Checkpoint(tmp_path)


def altered(folder: Path, target: Path, name: str, tensor: torch.Tensor | None) -> Path:
    """A copy of `folder` in which one tensor is another, or is gone."""
    tensors = load_file(folder / "model.safetensors")
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save_file(tensors, target / "model.safetensors")
    (target / "config.json").write_text((folder / "config.json").read_text())
    return target


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("model.layers.1.mlp.up_proj.weight", None, "no tensor 'model.layers.1.mlp.up_proj.weight'"),
        ("model.layers.0.mlp.up_proj.weight", torch.zeros(8, 8), r"mlp.up_proj is \(8, 8\)"),
        ("model.layers.0.mlp.up_proj.weight", torch.zeros(8, 8, dtype=torch.int8), "int8 without the scales"),
        ("model.embed_tokens.weight", torch.zeros(8, 8), r"embedding is \(8, 8\)"),
    ],
    ids=["missing", "misshapen", "scales-missing", "embedding"],
)
def test_a_wrong_tensor_is_named(
    half_folder: Path, tmp_path: Path, name: str, tensor: torch.Tensor | None, message: str
) -> None:
    """The message names the tensor and what it should be."""
    folder = altered(half_folder, tmp_path, name, tensor)

    with pytest.raises(BrokenCheckpoint, match=message):
        load_model(folder, Quantization.NONE, CPU, kv_blocks=4)


def test_a_checkpoint_is_not_quantized_twice(half_folder: Path, tmp_path: Path) -> None:
    """Bytes that are saved as int8 cannot become NF4."""
    fields = json.loads((half_folder / "config.json").read_text())
    fields["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").symlink_to(half_folder / "model.safetensors")

    with pytest.raises(UnsupportedModel, match="saved as int8; it cannot be made nf4"):
        load_model(tmp_path, Quantization.NF4, CPU, kv_blocks=4)


def test_blocks_that_do_not_divide_a_tile_are_refused() -> None:
    """The CPU path attends tiles of 128 keys."""
    kv = KVTensors(LlamaConfig.from_json(LLAMA_7B), num_blocks=1, block_size=48, dtype=torch.float16, device=CPU)

    with pytest.raises(ValueError, match="blocks of 48"):
        make_attention(kv, CPU)


@pytest.mark.parametrize(
    ("quantization", "loads_bitsandbytes"), [(Quantization.NONE, False), (Quantization.INT8, True)]
)
def test_loading_imports_no_more_than_it_needs(
    half_folder: Path, quantization: Quantization, loads_bitsandbytes: bool
) -> None:
    """Never transformers nor torch's compiler; bitsandbytes only to quantize."""
    program = (
        "import sys, pathlib, torch\n"
        "from worker.engine.config import Quantization\n"
        "from worker.engine.loader import load_model\n"
        f"load_model(pathlib.Path({str(half_folder)!r}), Quantization({quantization.value!r}),"
        " torch.device('cpu'), kv_blocks=4)\n"
        "print([name for name in ('transformers', 'torch._dynamo', 'bitsandbytes') if name in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert run.stdout.strip() == ("['bitsandbytes']" if loads_bitsandbytes else "[]")
