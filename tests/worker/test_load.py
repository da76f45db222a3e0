"""What the settings make of a folder."""

import gc
import os
import shutil
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from contract.bundle import ChatFormatKind
from herd.up import DEMO_MODEL
from worker.load import load
from worker.progress import Progress
from worker.served import Served
from worker.settings import WorkerSettings


def load_folder(folder: Path, **settings: str) -> Served:
    """Load on the CPU, with a small KV cache."""
    progress, fd = Progress.create()
    os.close(fd)
    fields = {"model_path": folder, "device": "cpu", "threads": 1, "kv_cache_bytes": 16 << 20, **settings}
    return load(WorkerSettings.model_validate(fields), progress)


@pytest.mark.parametrize(
    ("chat_format", "expected"),
    [("auto", ChatFormatKind.NONE), ("llama2", ChatFormatKind.LLAMA2), ("none", ChatFormatKind.NONE)],
)
def test_a_chat_folder_without_a_template_can_be_told_its_format(
    chat_format: str, expected: ChatFormatKind, tmp_path: Path
) -> None:
    """The first Llama 2 chat folders were published without a template."""
    folder = tmp_path / "chat"
    shutil.copytree(DEMO_MODEL, folder, ignore=shutil.ignore_patterns("chat_template.jinja"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}')

    assert load_folder(folder, chat_format=chat_format).bundle.chat_format.kind is expected


def test_the_log_says_whose_kernels_run() -> None:
    """On the CPU torch's, always."""
    with capture_logs() as events:
        load_folder(DEMO_MODEL)

    assert [event["kernels"] for event in events if event["event"] == "model on device"] == ["torch"]


def test_a_small_kv_cache_shortens_the_context(tmp_path: Path) -> None:
    """A gateway learns what really fits. An engine process collects no garbage until here, and does from here on."""
    gc.disable()
    try:
        served = load_folder(DEMO_MODEL, kv_cache_bytes=str(1 << 20))
        assert gc.isenabled()
    finally:
        gc.enable()

    assert served.bundle.context_length < 1024
