"""What the loader makes of a folder is what transformers makes of it, byte for byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.oracle import MULTI_HEAD, Shape, greedy, random_llama, random_prompts, save
from worker.engine.checkpoint import Checkpoint
from worker.engine.config import LlamaConfig, Quantization
from worker.engine.loader import FolderSource, load_model
from worker.engine.weights import DenseWeight, Int8Weight, LinearWeight, NestedAbsmax, Nf4Weight

CPU = torch.device("cpu")
QUANTIZED = [Quantization.INT8, Quantization.NF4, Quantization.NF4_DQ]


def saved_by_transformers(folder: Path, quantization: Quantization, target: Path) -> Path:
    """`folder` quantized and saved by transformers alone."""
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    if quantization is Quantization.INT8:
        settings = BitsAndBytesConfig(load_in_8bit=True)
    else:
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=quantization is Quantization.NF4_DQ,
            bnb_4bit_compute_dtype=torch.float16,
        )
    model: Any = LlamaForCausalLM.from_pretrained(folder, quantization_config=settings, device_map="cpu")
    model.save_pretrained(target)
    return target


def linears(folder: Path, quantization: Quantization) -> dict[str, LinearWeight]:
    """Every linear weight of the decoder, by name, before any is fused."""
    config = LlamaConfig.from_folder(folder)
    hidden, inner = config.hidden_size, config.intermediate_size
    query, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes = {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    with Checkpoint(folder) as checkpoint:
        source = FolderSource(checkpoint, config, quantization, CPU)
        return {
            name: source.linear(name, shape)
            for layer in range(config.num_layers)
            for name, shape in ((f"model.layers.{layer}.{module}", shape) for module, shape in shapes.items())
        }


def assert_same_bytes(ours: LinearWeight, theirs: LinearWeight) -> None:
    """Equal in every stored tensor."""
    match ours, theirs:
        case DenseWeight(), DenseWeight():
            assert ours.values.dtype == theirs.values.dtype
            assert torch.equal(ours.values, theirs.values)
        case Int8Weight(), Int8Weight():
            assert torch.equal(ours.codes, theirs.codes)
            assert torch.equal(ours.row_absmax, theirs.row_absmax)
        case Nf4Weight(absmax=NestedAbsmax() as mine), Nf4Weight(absmax=NestedAbsmax() as other):
            assert torch.equal(ours.packed, theirs.packed)
            for field in ("codes", "code_book", "group_absmax", "offset"):
                assert torch.equal(getattr(mine, field), getattr(other, field)), field
            assert mine.group_size == other.group_size
        case Nf4Weight(absmax=torch.Tensor() as mine), Nf4Weight(absmax=torch.Tensor() as other):
            assert torch.equal(ours.packed, theirs.packed)
            assert torch.equal(mine, other)
            assert (ours.shape, ours.block_size) == (theirs.shape, theirs.block_size)
        case _:
            pytest.fail(f"{type(ours)} and {type(theirs)} are stored in different ways")


@pytest.mark.parametrize("quantization", QUANTIZED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_quantizing_at_load_gives_the_bytes_of_transformers(
    shape: Shape, dtype: torch.dtype, quantization: Quantization, tmp_path: Path
) -> None:
    """From each dtype; and generation from what transformers saved has the same bits."""
    plain = save(random_llama(shape, seed=7), tmp_path / "plain", dtype)
    saved = saved_by_transformers(plain, quantization, tmp_path / "saved")

    ours, theirs = linears(plain, quantization), linears(saved, Quantization.AS_SAVED)
    for name, weight in ours.items():
        assert_same_bytes(weight, theirs[name])

    prompts = random_prompts(shape.vocab_size, [5, 40], seed=8)
    at_load = greedy(load_model(plain, quantization, CPU, kv_blocks=16), prompts, 8)
    reloaded = greedy(load_model(saved, Quantization.AS_SAVED, CPU, kv_blocks=16), prompts, 8)
    assert torch.equal(at_load.logits, reloaded.logits)


def test_shards_are_read_as_one_file(half_folder: Path, tmp_path: Path) -> None:
    """Several safetensors files with an index give the same weights."""
    from transformers import LlamaForCausalLM

    LlamaForCausalLM.from_pretrained(half_folder).save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1

    whole, sharded = linears(half_folder, Quantization.NONE), linears(tmp_path, Quantization.NONE)

    for name, weight in whole.items():
        assert_same_bytes(weight, sharded[name])


def test_an_old_configuration_is_read_as_a_new_one(half_folder: Path, tmp_path: Path) -> None:
    """transformers 4 wrote rope_theta and torch_dtype at the top and left head_dim out."""
    new = json.loads((half_folder / "config.json").read_text())
    old = {key: value for key, value in new.items() if key not in ("rope_parameters", "dtype")}
    old |= {"rope_theta": new["rope_parameters"]["rope_theta"], "torch_dtype": new["dtype"], "rope_scaling": None}
    if new["head_dim"] * new["num_attention_heads"] == new["hidden_size"]:
        del old["head_dim"]
    (tmp_path / "config.json").write_text(json.dumps(old))

    assert LlamaConfig.from_folder(tmp_path) == LlamaConfig.from_folder(half_folder)


def test_a_linear_that_the_checkpoint_left_unquantized_stays_so(tmp_path: Path) -> None:
    """`llm_int8_skip_modules` of a saved checkpoint is obeyed."""
    plain = save(random_llama(MULTI_HEAD, seed=9), tmp_path / "plain", torch.float16)
    saved = saved_by_transformers(plain, Quantization.INT8, tmp_path / "saved")
    tensors = load_file(saved / "model.safetensors")
    module = "model.layers.1.mlp.down_proj"
    tensors[f"{module}.weight"] = load_file(plain / "model.safetensors")[f"{module}.weight"]
    del tensors[f"{module}.SCB"], tensors[f"{module}.weight_format"]
    save_file(tensors, saved / "model.safetensors")

    found = linears(saved, Quantization.AS_SAVED)

    assert isinstance(found[module], DenseWeight)
    assert isinstance(found["model.layers.0.mlp.down_proj"], Int8Weight)


def test_progress_rises_from_zero_to_one(half_folder: Path) -> None:
    """The caller can show how far loading is."""
    fractions: list[float] = []

    load_model(half_folder, Quantization.INT8, CPU, kv_blocks=4, progress=fractions.append)

    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert len(fractions) > 2


def test_the_kv_cache_takes_the_bytes_it_is_given(half_folder: Path) -> None:
    """As many whole blocks as fit, counted over all layers, keys and values."""
    config = LlamaConfig.from_folder(half_folder)
    bytes_per_block = config.kv_bytes_per_block(16, 4)

    model = load_model(half_folder, Quantization.NONE, CPU, kv_bytes=7 * bytes_per_block + 5)

    assert model.num_blocks == 7
    assert sum(cache.nbytes for cache in (*model.kv.keys, *model.kv.values)) == 7 * bytes_per_block
    assert model.max_context == 7 * 16  # less than the model's own 512
    with pytest.raises(ValueError, match="hold no block"):
        load_model(half_folder, Quantization.NONE, CPU, kv_bytes=bytes_per_block - 1)


def test_a_folder_is_not_touched(half_folder: Path, tmp_path: Path) -> None:
    """Loading writes nothing, so a read-only mount will do."""
    folder = tmp_path / "copy"
    shutil.copytree(half_folder, folder)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    folder.chmod(0o555)

    load_model(folder, Quantization.NF4, CPU, kv_blocks=4)

    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
