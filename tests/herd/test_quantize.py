"""`herd quantize` writes what a worker serves as if it had quantized at load."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from herd.quantize import run_quantize
from herd.up import DEMO_MODEL
from worker.bundle import build_bundle
from worker.engine.batch import SequenceSlice
from worker.engine.config import Quantization
from worker.engine.loader import load_model

CPU = torch.device("cpu")


def logits_of(folder: Path, quantization: Quantization) -> torch.Tensor:
    """Of the last of ten tokens."""
    model = load_model(folder, quantization, CPU, kv_blocks=4)
    return model.forward([SequenceSlice(token_ids=range(3, 13), start=0, block_table=[0], wants_logits=True)])


@pytest.mark.parametrize("to", ["int8", "nf4", "nf4-dq"])
def test_a_quantized_folder_gives_the_bits_of_quantizing_at_load(to: str, tmp_path: Path) -> None:
    """Same logits, bit by bit; and the tokenizer, its bundle and the generation defaults come along."""
    out = tmp_path / to

    assert run_quantize(DEMO_MODEL, to, out, "cpu") == 0

    assert torch.equal(logits_of(out, Quantization.AS_SAVED), logits_of(DEMO_MODEL, Quantization(to)))
    carried, source = (build_bundle(folder, quantization=to) for folder in (out, DEMO_MODEL))
    assert carried == source


@pytest.mark.parametrize(
    ("to", "device", "said"),
    [("int4", "cpu", "--to is"), ("int8", "tpu", "--device is"), ("int8", "cpu", "is not empty")],
)
def test_what_cannot_be_served_is_refused(
    to: str, device: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2 and one line; nothing is overwritten."""
    (tmp_path / "kept").write_text("mine")

    assert run_quantize(DEMO_MODEL, to, tmp_path, device) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_quantized_source_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Quantizing twice would lose quality twice."""
    source = tmp_path / "source"
    source.mkdir()
    config = json.loads((DEMO_MODEL / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "quantization_config": {"load_in_8bit": True}}))

    assert run_quantize(source, "int8", tmp_path / "out", "cpu") == 2
    assert "quantized already" in capsys.readouterr().err


def test_a_folder_without_a_config_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is no model folder."""
    shutil.copy2(DEMO_MODEL / "tokenizer.model", tmp_path)

    assert run_quantize(tmp_path, "int8", tmp_path / "out", "cpu") == 2
    assert "no model folder" in capsys.readouterr().err
