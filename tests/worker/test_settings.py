"""What the environment says is what the worker does; what it misspells stops the worker."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from contract import exit_status
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]


def environment(**variables: str) -> dict[str, str]:
    """With these settings only."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HERD_")}
    return {**kept, **variables}


def run_worker(**variables: str) -> "subprocess.CompletedProcess[str]":
    """`python -m worker` in an environment with these settings only."""
    return subprocess.run(
        [sys.executable, "-m", "worker"],
        env=environment(**variables),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_a_misspelt_setting_stops_the_process() -> None:
    """Silence would leave the operator with a default that was not meant."""
    ended = run_worker(HERD_WORKER_MODEL_PATH="x", HERD_WORKER_MAX_SEQUENCE="9")
    assert ended.returncode == exit_status.UNFIT
    assert "unknown settings: HERD_WORKER_MAX_SEQUENCE" in ended.stderr


@pytest.mark.parametrize(
    ("variables", "fact"),
    [
        ({}, "HERD_WORKER_MODEL_PATH: Field required"),
        ({"HERD_WORKER_MODEL_PATH": "x", "HERD_WORKER_QUANTIZATION": "int4"}, "HERD_WORKER_QUANTIZATION: Input should"),
        ({"HERD_WORKER_MODEL_PATH": "x", "HERD_WORKER_REDIS_URL": "redis:6379"}, "'redis:6379' is no address of a"),
    ],
)
def test_a_wrong_setting_is_told_by_its_name(variables: dict[str, str], fact: str) -> None:
    """One line, and the status that says that a restart cannot help."""
    ended = run_worker(**variables)
    assert ended.returncode == exit_status.UNFIT
    assert fact in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_name_in_the_api_is_the_folder_s_unless_given(tmp_path: Path) -> None:
    """A folder `llama-2-7b` is served as `llama-2-7b`."""
    folder = tmp_path / "llama-2-7b"
    folder.mkdir()
    assert WorkerSettings(model_path=folder).served_name == "llama-2-7b"
    assert WorkerSettings(model_path=folder, model_name="mine").served_name == "mine"


def test_a_step_has_a_token_for_every_sequence(tmp_path: Path) -> None:
    """Else a full worker would leave someone out in every step."""
    with pytest.raises(ValidationError, match="each of max_sequences 16 needs one"):
        WorkerSettings(model_path=tmp_path, max_sequences=16, max_step_tokens=8)
