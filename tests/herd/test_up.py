"""What `herd up` tells the processes that it starts."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from herd.up import UpOptions, _Herd, models_of

OPTIONS = UpOptions(
    models=(),
    model_names=(),
    quantization="auto",
    workers=2,
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
    herd = _Herd(options, models_of(options), Console())
    children = herd._own_children(Path("/nowhere"), 50051, "unix:///nowhere")
    return {child.name: child.env.get(name) for child in children}


def test_every_process_has_a_metrics_port_of_its_own() -> None:
    """One variable for all workers would let the second find its port taken."""
    options = replace(OPTIONS, metrics_port=9464)
    assert told(options, "HERD_GATEWAY_METRICS_PORT")["gateway"] == "9464"
    workers = told(options, "HERD_WORKER_METRICS_PORT")
    assert (workers["worker-0"], workers["worker-1"]) == ("9465", "9466")


def test_workers_share_the_cores() -> None:
    """No two engines take all of them."""
    threads = told(OPTIONS, "HERD_WORKER_THREADS")
    assert threads["worker-0"] == threads["worker-1"]
