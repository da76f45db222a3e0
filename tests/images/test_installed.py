"""What the images hold: the built wheels, each package once, nothing that does not belong there; and it serves."""

import json
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from contract.lifetime import spawn
from tests.images.conftest import Images, clean_environment
from tests.redis_server import start_valkey
from tests.until import until_now

OURS = {
    **{name: ["llamaherd-server"] for name in ("service", "worker", "contract", "telemetry", "herd")},
    "llamaherd": ["llamaherd-client"],
}
OWNERS = f"""
import importlib.metadata, json
owners = importlib.metadata.packages_distributions()
print(json.dumps({{name: owners[name] for name in {list(OURS)}}}))
"""
INSTALLED = """
import importlib.util, json, sys
print(json.dumps([name for name in sys.argv[1:] if importlib.util.find_spec(name)]))
"""


def python(prefix: Path, code: str, *arguments: str) -> Any:
    """What `code`, run by the Python of an image, prints as JSON."""
    command = [str(prefix / "bin/python"), "-c", code, *arguments]
    env = clean_environment({"PYTHONSAFEPATH": "1"})
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_wheels_hold_every_file_of_the_packages(images: Images) -> None:
    """Scripts for Redis, kernels and the demo model among them: no list that someone forgets to lengthen."""
    for distribution, root, packages in (
        ("llamaherd_server", images.context, ["service", "worker", "contract", "telemetry", "herd"]),
        ("llamaherd_client", images.context / "clients/python", ["llamaherd"]),
    ):
        (wheel,) = images.wheels.glob(f"{distribution}-*.whl")
        names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
        files = (path for package in packages for path in (root / package).rglob("*") if path.is_file())
        assert names == {str(path.relative_to(root)) for path in files}
        suffixes = {Path(name).suffix for name in names}
    assert suffixes == {".py", ".pyi", ".typed"}, "the client is what strangers install"


def test_wheels_hold_what_is_no_python(images: Images) -> None:
    """The scripts, the kernels and the model that `herd up` serves by default."""
    (wheel,) = images.wheels.glob("llamaherd_server-*.whl")
    suffixes = {(path.parent, path.suffix) for path in map(Path, zipfile.ZipFile(wheel).namelist())}

    assert {
        (Path("contract/scripts"), ".lua"),
        (Path("herd/demo_model"), ".safetensors"),
        (Path("worker/engine/kernels"), ".cu"),
    } <= suffixes


@pytest.mark.parametrize("image", ["gateway", "worker"])
def test_each_of_our_packages_has_one_owner(images: Images, image: str) -> None:
    """Others on public indexes have these names; pip would merge their files into ours without a word."""
    assert python(getattr(images, image), OWNERS) == OURS


def test_the_gateway_has_no_torch(images: Images) -> None:
    """Nor what comes with it; the gateway's own code can be imported."""
    foreign = ("torch", "transformers", "bitsandbytes", "safetensors", "accelerate", "numpy", "triton")

    assert python(images.gateway, INSTALLED, *foreign, "service.gateway") == ["service.gateway"]
    assert python(images.gateway, "import service.__main__, service.probe; print(1)") == 1


def test_the_worker_has_no_gateway_libraries(images: Images) -> None:
    """It serves no gRPC; the worker's own code can be imported."""
    foreign = ("grpc_reflection", "grpc_channelz", "grpc_health")

    assert python(images.worker, INSTALLED, *foreign, "torch", "worker.serve") == ["torch", "worker.serve"]
    assert python(images.worker, "import worker.__main__, worker.supervise, worker.serve; print(1)") == 1


@pytest.mark.parametrize("image", ["gateway", "worker"])
def test_the_command_line_starts_in_each_image(images: Images, image: str) -> None:
    """`docker compose exec gateway-0 herd generate`, and `--entrypoint herd` of the worker's for `herd quantize`."""
    command = [str(getattr(images, image) / "bin/herd")]
    env = clean_environment({"PYTHONSAFEPATH": "1"})
    for arguments, status in ((["--help"], 0), (["generate", "Hi", "--address", "127.0.0.1:1"], 1)):
        done = subprocess.run([*command, *arguments], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr


@contextmanager
def process(image: Path, module: str, log: Path, **variables: str) -> Iterator[None]:
    """An image's entry point, in the environment that it would have there."""
    env = clean_environment({"PYTHONSAFEPATH": "1", **variables})
    with log.open("wb") as sink:
        child = spawn([str(image / "bin/python"), "-m", module], env=env, stdout=sink, stderr=sink)
    try:
        yield
    finally:
        child.terminate()
        status = child.wait(timeout=60)
        print(log.read_text())  # shown if the test fails
    assert status == 0


def listening_port(log: Path) -> str:
    """The port that a gateway says it listens on; empty as long as it has not."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return next((str(line["port"]) for line in lines if line["event"] == "gateway listens"), "")


def wait_until_serving(address: str) -> None:
    """Return once a gateway's health is SERVING: a worker is ready."""
    with grpc.insecure_channel(address) as channel:
        states = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=240)
        assert any(state.status == health_pb2.HealthCheckResponse.SERVING for state in states)


def test_both_images_serve_together(images: Images, tmp_path: Path) -> None:
    """A gateway, a worker and the gateway image's own client: an answer of the demo model, and the probe sees it."""

    def in_gateway(*command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command as `docker compose exec gateway-0` would."""
        program, *arguments = command
        env = clean_environment({"PYTHONSAFEPATH": "1", "HERD_GATEWAY_PORT": port})
        whole = [str(images.gateway / "bin" / program), *arguments]
        return subprocess.run(whole, env=env, capture_output=True, text=True, check=False)

    log = tmp_path / "gateway.log"
    (model,) = images.worker.glob("lib/python3*/site-packages/herd/demo_model")
    settings = {"MODEL_PATH": str(model), "MODEL_NAME": "demo", "QUANTIZATION": "int8", "DEVICE": "cpu", "THREADS": "1"}
    server = start_valkey(tmp_path)
    try:
        gateway_env = {"HERD_GATEWAY_REDIS_URL": server.url, "HERD_GATEWAY_PORT": "0"}
        worker_env = {f"HERD_WORKER_{name}": value for name, value in {**settings, "REDIS_URL": server.url}.items()}
        with (
            process(images.gateway, "service", log, **gateway_env),
            process(images.worker, "worker", tmp_path / "worker.log", **worker_env),
        ):
            until_now(lambda: listening_port(log), timeout_s=120, what="the gateway listens")
            port = listening_port(log)
            wait_until_serving(f"127.0.0.1:{port}")
            probed = in_gateway("python", "-m", "service.probe")
            answered = in_gateway("herd", "generate", "Count to ten", "--address", f"127.0.0.1:{port}")
        assert (probed.returncode, probed.stdout) == (0, "SERVING\n"), probed.stderr
        assert "1, 2, 3, 4, 5, 6, 7, 8, 9, 10" in answered.stdout, answered.stderr
        assert in_gateway("python", "-m", "service.probe").returncode == 1, "nobody listens any more"
    finally:
        server.kill()
