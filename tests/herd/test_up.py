"""What `herd up` tells the processes that it starts, and its user when they cannot run."""

import json
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from contract.exit_status import UNFIT
from herd.children import Child, ChildFailed, last_words
from herd.machine import visible_gpus
from herd.up import DEMO_MODEL, UpOptions, _gateway_settings, _Herd, models_of
from tests.herd_process import ROOT, children_of
from tests.herd_process import herd_up as herd_of
from tests.until import until_now

OPTIONS = UpOptions(
    models=(),
    model_names=(),
    quantization="auto",
    workers=2,
    gateways=1,
    device="cpu",
    chat_format="auto",
    host="127.0.0.1",
    port=0,
    insecure=False,
    metrics_port=0,
    redis_url=None,
    state_dir=None,
    ready_file=None,
    verbose=False,
)


def told(options: UpOptions, name: str) -> dict[str, str | None]:
    """The variable, by process."""
    herd = _Herd(options, models_of(options), _gateway_settings(options))
    children = herd._own_children(Path("/nowhere"), 50051, "unix:///nowhere")
    return {child.name: child.env.get(name) for child in children}


def test_every_process_has_a_metrics_port_of_its_own() -> None:
    """One variable for all workers would let the second find its port taken."""
    options = replace(OPTIONS, metrics_port=9464)
    assert told(options, "HERD_GATEWAY_METRICS_PORT")["gateway"] == "9464"
    workers = told(options, "HERD_WORKER_METRICS_PORT")
    assert (workers["worker-0"], workers["worker-1"]) == ("9465", "9466")
    options = replace(options, gateways=2)
    gateways, workers = told(options, "HERD_GATEWAY_METRICS_PORT"), told(options, "HERD_WORKER_METRICS_PORT")
    assert (gateways["gateway-0"], gateways["gateway-1"], workers["worker-0"]) == ("9464", "9465", "9466")


def test_workers_share_the_cores() -> None:
    """No two engines take all of them."""
    threads = told(OPTIONS, "HERD_WORKER_THREADS")
    assert threads["worker-0"] == threads["worker-1"]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("2,5", ["2", "5"]),
        ("3", ["3"]),
        (" GPU-aa , GPU-bb", ["GPU-aa", "GPU-bb"]),
        ("1,-1,2", ["1"]),
        ("-1", []),
        ("", []),
    ],
)
def test_only_gpus_that_were_given_are_handed_on(monkeypatch: pytest.MonkeyPatch, given: str, names: list[str]) -> None:
    """By the names they have in what was inherited, in turn; on one GPU, or none, it is inherited as it is."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    options = replace(OPTIONS, device="auto", workers=3)
    seen = told(options, "CUDA_VISIBLE_DEVICES")
    shares = told(options, "HERD_WORKER_GPU_SHARE")

    assert visible_gpus() == names
    workers = [seen[f"worker-{number}"] for number in range(3)]
    assert workers == [names[number % len(names)] if len(names) > 1 else given for number in range(3)]
    assert float(shares["worker-0"] or 0) == (1 / 2 if len(names) == 2 else 1 / 3)


def test_two_gateways_share_the_port() -> None:
    """Both serve, and the herd is ready once they do."""
    with herd_of("--gateways", "2", "--device", "cpu") as herd:
        command = [sys.executable, "-m", "herd", "status", "--json", "--redis-url", herd.redis_url]
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
        found = {each["pid"]: (each["state"], each["address"]) for each in json.loads(told)["gateways"]}
        assert found == {herd.pids[name]: ("serving", herd.address) for name in ("gateway-0", "gateway-1")}


def herd_up(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """The command, run to its end."""
    command = [sys.executable, "-m", "herd", "up", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def test_a_folder_that_cannot_be_served_ends_it_at_once(tmp_path: Path) -> None:
    """The worker is not started again and again; what is wrong stands there once, in words."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(DEMO_MODEL / name, tmp_path)
    ended = herd_up("--port", "0", "--device", "cpu", "--model", str(tmp_path))

    assert ended.returncode == 1
    assert "herd up: worker-0 cannot run" in ended.stderr
    assert ended.stderr.count(f"{tmp_path} has neither tokenizer.model nor tokenizer.json") == 1
    assert "{" not in ended.stderr


def test_a_port_that_is_taken_is_named() -> None:
    """With the way out."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = herd_up("--port", str(port))

    assert ended.returncode == 1
    assert f"127.0.0.1 port {port}: Address already in use; --port takes another" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "fact"),
    [
        (("--quantization", "int4"), 2, "'int4' is not one of 'auto', 'int8', 'nf4', 'nf4-dq', 'none'"),
        (("--device", "tpu"), 2, "'tpu' is none of auto, cpu, cuda and cuda:N"),
        (("--host", "0.0.0.0"), 2, "host 0.0.0.0 is reachable by others"),
        (("--redis-url", "redis.example:6379"), 1, "'redis.example:6379' is no address of a Redis"),
        (("--redis-url", "redis://me:secret@127.0.0.1:1"), 1, "no Redis answers at redis://me:***@127.0.0.1:1"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(arguments: tuple[str, ...], status: int, fact: str) -> None:
    """2 is for the command line, as everywhere; the rest is 1."""
    ended = herd_up("--port", "0", *arguments)

    assert ended.returncode == status
    assert fact in " ".join(ended.stderr.replace("│", " ").split())
    assert "Traceback" not in ended.stderr


def test_a_private_valkey_that_cannot_run_ends_it(tmp_path: Path) -> None:
    """Gateway and worker have been started beside it; the valkey's own words are what is shown."""
    (tmp_path / "appendonlydir").mkdir()
    (tmp_path / "appendonlydir" / "appendonly.aof.manifest").write_text("damaged\n")
    ended = herd_up("--port", "0", "--device", "cpu", "--state-dir", str(tmp_path))

    assert ended.returncode == 1
    assert "herd up: valkey ended with code 1" in ended.stderr
    assert "manifest file" in ended.stderr


def test_a_sigterm_of_the_first_moments_ends_what_was_started() -> None:
    """Though nothing serves yet. The output ends when no process of the herd is left."""
    command = [sys.executable, "-m", "herd", "up", "--port", "0", "--device", "cpu", "--verbose"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as herd:
        try:
            until_now(lambda: children_of(herd.pid))
            herd.send_signal(signal.SIGTERM)
            herd.communicate(timeout=60)
        finally:
            herd.kill()
    assert herd.returncode == 0


@pytest.mark.parametrize(("code", "num_starts"), [(UNFIT, 1), (3, 3)])
async def test_a_child_that_can_never_run_is_not_started_again(tmp_path: Path, code: int, num_starts: int) -> None:
    """Any other death is tried as often as was said."""
    program = f"import sys; print('here', file=sys.stderr); sys.exit({code})"
    child = Child("child", [sys.executable, "-c", program], {}, tmp_path / "log", max_restarts=2)
    await child.start()
    with pytest.raises(ChildFailed, match="here"):
        await child.keep()

    assert (tmp_path / "log").read_text().count("here") == num_starts


def test_a_log_s_errors_are_its_last_words() -> None:
    """Each once; a log without any is shown as it ends."""
    fault = json.dumps({"level": "error", "event": "model cannot be served", "error": "no tokenizer"})
    crash = json.dumps({"level": "error", "event": "crashed", "exception": "Traceback\n  ...\nKeyError: 'x'"})
    other = json.dumps({"level": "info", "event": "started"})

    assert last_words([other, fault, "not JSON", fault, crash, other]) == [
        "model cannot be served: no tokenizer",
        "crashed: KeyError: 'x'",
    ]
    assert last_words(["a", "b", "c"], at_most=2) == ["b", "c"]
