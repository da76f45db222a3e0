"""The benchmarks of the engine measure on the CPU what they measure on a GPU: a tiny shape, every table."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.device import Clocks, choose_device, copy_bandwidth, summary_of
from bench.engine import Plan, bench, cases_of, num_blocks
from bench.make_model import VOCABULARY, write_folder
from bench.models import config_of, free_blocks, make_model, weight_bytes
from bench.peers import by_transformers, decode_rate
from bench.report import Report, rows_of
from bench.soundness import churn
from bench.ttft import by_phase, moments
from tests.engine.fake_model import VOCAB_SIZE, FakeModel, byte_fallback_pieces
from worker.engine.batch import SequenceSlice
from worker.engine.config import ActivationFormat, Quantization
from worker.engine.engine import Engine, EngineSettings
from worker.engine.loader import load_model

CPU = torch.device("cpu")


def test_a_row_is_on_disk_as_soon_as_it_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In both files; a table's head comes once, and again after something else."""
    report = Report(tmp_path / "new" / "figures.json", device="none", bytes=12_345)
    report.row("rates", {"tokens_per_s": 1234.5, "share": 0.5, "none": None, "all": [1, 2]})
    found = json.loads((tmp_path / "new" / "figures.json").read_text())
    report.row("rates", {"tokens_per_s": 0.25, "share": 1.0, "none": 3, "all": []})
    report.note("a word")
    report.row("rates", {"tokens_per_s": 1.0, "share": 1.0, "none": "x", "all": []})
    markdown = (tmp_path / "new" / "figures.md").read_text()
    assert found == {
        "device": "none",
        "bytes": 12345,
        "rates": [{"tokens_per_s": 1234.5, "share": 0.5, "none": None, "all": [1, 2]}],
    }
    assert markdown.count("| tokens per s | share | none |\n|---|---|---|\n") == 2
    assert "| 1,234 | 50.0% | - |\n| 0.25 | 100.0% | 3 |\n\na word\n" in markdown
    assert capsys.readouterr().out == markdown


def test_rows_of_a_process_are_told_as_they_come(capfd: pytest.CaptureFixture[str]) -> None:
    """What is no row goes by; a process that fails has told what it had."""
    script = "import sys; print('a word'); print('{\"a\": 1}', flush=True); sys.exit(3)"
    rows = rows_of([sys.executable, "-c", script])
    assert next(rows) == {"a": 1}
    with pytest.raises(RuntimeError, match="ended with 3"):
        next(rows)
    assert capfd.readouterr().err == "a word\n"


def test_clocks_are_medians_and_every_reason() -> None:
    """What nvidia-smi cannot tell is no number, and its complaints are kept."""
    lines = ["1980, 3201, 120.5, 40, 0x0000000000000000", "1755, 3201, 700.0, 61, 0x0000000000000004"]
    assert summary_of([*lines, "1965, 3201, 650.0, 60, 0x0000000000000004", "not a sample"]) == {
        "sm_mhz": 1965.0,
        "memory_mhz": 3201.0,
        "watts": 650.0,
        "celsius": 60.0,
        "least_sm_mhz": 1755.0,
        "reasons": "0x0000000000000000 0x0000000000000004",
    }
    broken = summary_of(['Field "clocks_event_reasons.active" is not a valid field to query.'])
    assert broken["sm_mhz"] is None
    assert "not a valid field" in str(broken["reasons"])
    with Clocks(CPU) as clocks:
        pass
    assert clocks.summary()["sm_mhz"] is None


def test_every_row_of_the_engine(tmp_path: Path) -> None:
    """Of two contexts, with what the longer keeps of the limit; and a batch that would not fit is named."""
    report = Report(tmp_path / "engine.json")
    cases = [*cases_of([5, 70], [1]), (5, 20_000)]
    bench(Plan("tiny", Quantization.NF4, "", 3, cases, CPU, copy_bandwidth(CPU)), report)
    found = json.loads((tmp_path / "engine.json").read_text())
    assert [(row["context"], row["batch"]) for row in found["decode"]] == [(6, 1), (71, 1)]
    assert all(row["tokens_per_s"] > 0 and row["kernels"] == "torch" for row in found["decode"])
    assert [row["contexts"] for row in found["contexts"]] == ["71 against 6"]
    assert (tmp_path / "engine.md").read_text().count("prompt 5, batch 20000 does not fit") == 1


def test_every_row_of_the_first_token() -> None:
    """At each moment, and by what ran."""
    options = argparse.Namespace(
        shape="tiny", device="cpu", prompt=5, repeats=2, load=0.0, rest=0.0, prefill_activations="float"
    )
    rows: list[Any] = list(moments(options, Quantization.INT8))
    firsts = [told["row"] for told in rows if told["table"] == "first token"]
    assert [row["moment"] for row in firsts] == ["fresh", "loaded", "rested", "now and then"]
    assert all(0 < row["least_ms"] <= row["median_ms"] and row["built"] == 0 for row in firsts)
    assert any(told["table"] == "by kernel" and told["row"]["what"] == "first kernel to last" for told in rows)


def test_kernels_are_told_by_phase() -> None:
    """The four products in their order, and the time in which nothing ran."""
    names = [
        "quantized_gemm_wide",
        "flash_fwd",
        "quantized_gemm_wide",
        "add_rms_norm",
        "round_rows",
        *["quantized_gemm"] * 2,
        "nvjet_x",
    ]
    kernels = [(name, 1000.0 * number, 900.0) for number, name in enumerate(names, 1)]
    assert by_phase(kernels) == pytest.approx(
        {
            "product qkv": 0.9,
            "attention": 0.9,
            "product attention out": 0.9,
            "norms": 0.9,
            "rounding activations": 0.9,
            "product gate up": 0.9,
            "product down": 0.9,
            "head": 0.9,
            "nothing ran": 0.7,
            "first kernel to last": 7.9,
        }
    )
    assert by_phase([]) == {}


def test_churn_ends_every_request_and_loses_no_block() -> None:
    """Over the engine itself; rows come on the way."""
    model = FakeModel(num_blocks=600, block_size=64, max_context=1024)
    engine = Engine(model, byte_fallback_pieces(), EngineSettings(64, 2048, 512))
    rows = list(churn(engine, 200, CPU, VOCAB_SIZE))
    assert len(rows) > 3
    assert rows[-1]["ended"] == 200
    assert "length=" in str(rows[-1]["ends"])


@pytest.mark.parametrize("name", ["int8", "nf4"])
def test_a_folder_is_written_quantized(name: str, tmp_path: Path) -> None:
    """And is read as what it says."""
    write_folder("tiny", tmp_path / name, name)
    model = load_model(tmp_path / name, Quantization.AS_SAVED, CPU, kv_blocks=2)
    assert model.config.saved_quantization.value == name
    logits = model.forward([SequenceSlice([5, 6, 7], 0, [0], True)])
    assert logits.shape == (1, VOCABULARY)
    assert logits.isfinite().all()


def test_transformers_runs_such_a_folder(tmp_path: Path) -> None:
    """So it is one, and the peer is measured."""
    write_folder("tiny", tmp_path / "tiny", "nf4")
    assert math.isfinite(decode_rate(by_transformers(tmp_path / "tiny", CPU), batch=1, new=4, device=CPU))


def test_bytes_of_weights_are_those_that_are_stored() -> None:
    """7B's int8 layers have 6.476e9 weights; the head is in float16."""
    config = config_of("7b")
    assert weight_bytes(config, Quantization.INT8) == pytest.approx(6.476e9 + 2 * 32000 * 4096, rel=1e-3)
    assert weight_bytes(config, Quantization.NF4) == pytest.approx(6.476e9 * 0.5625 + 2 * 32000 * 4096, rel=1e-3)
    assert num_blocks(128, 8, 128) <= free_blocks(config, Quantization.INT8, choose_device("cpu"))
    with pytest.raises(ValueError, match="no hopper kernels on cpu"):
        make_model(config_of("tiny"), Quantization.INT8, 2, CPU, "hopper")
    with pytest.raises(ValueError, match="no int8 activations on cpu"):
        make_model(config_of("tiny"), Quantization.INT8, 2, CPU, prefill_activations=ActivationFormat.INT8)
