"""The compose files: valid by the specification, and what they tell our processes is what these take."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import GatewaySettings
from telemetry.environment import refuse_unknown
from tests.herd_process import ROOT
from worker.settings import WorkerSettings

BASE, TLS = ROOT / "compose.yaml", ROOT / "compose.tls.yaml"
COLLECTOR = ROOT / "images/otel-collector.yaml"


def is_valid(path: Path) -> bool:
    """By the JSON schema of the compose specification, a copy of which comes with check-jsonschema."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def load(path: Path, **variables: str) -> Any:
    """The file, with ${NAME:-default} and ${NAME:?what is missing} filled in."""

    def value(match: re.Match[str]) -> str:
        name, operator, word = match.groups()
        assert operator == ":-" or name in variables, f"{name}: {word}"
        return variables.get(name, word)

    return yaml.safe_load(re.sub(r"\$\{(\w+)(:[-?])([^}]*)\}", value, path.read_text()))


@pytest.fixture
def services() -> Any:
    """compose.yaml's, with the least that it wants to be told."""
    return load(BASE, MODEL_DIR="/models/m")["services"]


@pytest.mark.parametrize("path", [BASE, TLS], ids=lambda path: path.name)
def test_the_schema_accepts_it(path: Path, tmp_path: Path) -> None:
    """And would not accept a word that the specification does not have."""
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(path.read_text().replace("environment:", "enviroment:"))

    assert is_valid(path)
    assert not is_valid(wrong)


def test_gateways_take_their_settings(services: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both, with and without TLS; with it, no exception from the rule is left."""
    certificate = load(TLS, TLS_CERT="c.pem", TLS_KEY="k.pem")
    for name in ("gateway-0", "gateway-1"):
        plain = services[name]["environment"]
        secured = plain | certificate["services"][name]["environment"]
        assert settings_of(GatewaySettings, plain, monkeypatch).insecure
        settings = settings_of(GatewaySettings, secured, monkeypatch)
        assert not settings.insecure
        mounted = {Path("/run/secrets") / secret for secret in certificate["services"][name]["secrets"]}
        assert mounted == {settings.tls_cert, settings.tls_key}


def test_workers_take_their_settings(services: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is where it is mounted; each worker has a GPU of its own."""
    gpus = []
    for name in ("worker-0", "worker-1"):
        worker = services[name]
        settings = settings_of(WorkerSettings, worker["environment"], monkeypatch)
        assert str(settings.model_path) in [volume["target"] for volume in worker["volumes"]]
        (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]
        gpus += device["device_ids"]
    assert gpus == ["0", "1"]


def settings_of(settings: Any, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a process makes of `environment`."""
    with monkeypatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("HERD_")]:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        refuse_unknown(settings, os.environ)
        return settings()


def test_only_this_machine_reaches_it(services: Any) -> None:
    """Unless it is told otherwise; Redis has no port at all, and only our processes are on its network."""
    ports = {name: service.get("ports", []) for name, service in services.items()}
    published = [port for service in ports.values() for port in service]
    outside = load(BASE, MODEL_DIR="m", BIND="0.0.0.0")["services"]["gateway-1"]["ports"]

    assert ports["redis"] == []
    assert len(published) == len(set(published)) == 5
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert outside == ["0.0.0.0:50052:50051"]
    assert services["redis"]["networks"] == ["herd"]
    assert load(BASE, MODEL_DIR="m")["networks"]["herd"] == {"internal": True}


def test_gateways_are_healthy_by_the_model_that_the_workers_serve() -> None:
    """Under whatever name: `--wait` returns when that one can be asked."""
    for variables, name in (({}, "llama-2"), ({"MODEL_NAME": "mine"}, "mine")):
        services = load(BASE, MODEL_DIR="/models/m", **variables)["services"]
        for gateway in ("gateway-0", "gateway-1"):
            assert services[gateway]["healthcheck"]["test"] == ["CMD", "python", "-m", "service.probe", name]
        for worker in ("worker-0", "worker-1"):
            assert services[worker]["environment"]["HERD_WORKER_MODEL_NAME"] == name


def test_redis_keeps_what_it_is_told(services: Any) -> None:
    """Append-only file on a volume, nothing evicted."""
    redis = services["redis"]

    assert "--appendonly yes" in redis["command"]
    assert "--maxmemory-policy noeviction" in redis["command"]
    assert [volume["target"] for volume in redis["volumes"]] == ["/data"]


def test_a_model_has_to_be_named() -> None:
    """Compose itself says which variable is missing."""
    with pytest.raises(AssertionError, match="MODEL_DIR"):
        load(BASE)


def test_spans_reach_the_collector(services: Any) -> None:
    """Over http, where it listens; every part that its pipelines name is there, and none is idle."""
    config = load(COLLECTOR)
    endpoint = config["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
    pipelines = config["service"]["pipelines"].values()

    for name in ("gateway-0", "gateway-1", "worker-0", "worker-1"):
        url = services[name]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"]
        assert url == f"http://otel-collector:{endpoint.rpartition(':')[2]}"
    for kind in ("receivers", "processors", "exporters"):
        assert set(config[kind]) == {part for pipeline in pipelines for part in pipeline[kind]}
    assert config["service"]["pipelines"].keys() == {"traces"}


def test_prometheus_asks_every_process(services: Any) -> None:
    """At the port that the process is told, beyond its loopback; metrics go no other way."""
    config = load(ROOT / "monitoring/prometheus.yaml")
    asked = [target for job in config["scrape_configs"] for each in job["static_configs"] for target in each["targets"]]
    told = []
    for name in ("gateway-0", "gateway-1", "worker-0", "worker-1"):
        environment = services[name]["environment"]
        prefix = f"HERD_{name.partition('-')[0].upper()}_METRICS"
        assert (environment[f"{prefix}_HOST"], environment["OTEL_METRICS_EXPORTER"]) == ("0.0.0.0", "none")
        told.append(f"{name}:{environment[f'{prefix}_PORT']}")
    assert asked == told


def test_every_mounted_file_is_there(services: Any) -> None:
    """And every file that compose names is mounted somewhere."""
    configs = load(BASE, MODEL_DIR="m")["configs"]
    mounted = {each["source"] for service in services.values() for each in service.get("configs", [])}

    assert mounted == configs.keys()
    assert all((ROOT / each["file"]).is_file() for each in configs.values())


def test_envoy_serves_tls_with_the_gateways_certificate() -> None:
    """By another file, that is mounted where the command looks for it."""
    overlay = load(TLS, TLS_CERT="c.pem", TLS_KEY="k.pem")
    envoy = overlay["services"]["envoy"]
    (config,) = envoy["configs"]
    text = (ROOT / overlay["configs"][config["source"]]["file"]).read_text()

    assert config["target"] in envoy["command"]
    assert {f"/run/secrets/{secret}" for secret in envoy["secrets"]} == set(re.findall(r"/run/secrets/[\w-]+", text))


def test_images_of_others_are_pinned(services: Any) -> None:
    """To a version, so that tomorrow's herd is today's."""
    images = [service["image"] for service in services.values() if "build" not in service]

    assert all(re.search(r":v?\d+\.\d+", image) for image in images), images
