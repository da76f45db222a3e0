"""Logs as JSON with their trace, and tracing by the standard variables."""

import json
import subprocess
import sys

import pytest
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from telemetry.environment import WrongSettings, refuse_unknown
from tests.herd_process import ROOT
from tests.otlp_receiver import otlp_receiver
from tests.service.test_process import environment

PROGRAM = """
import logging
import structlog
from opentelemetry import trace
from telemetry.logs import start_logging
from telemetry.setup import start_tracing

start_logging("tester")
stop_tracing = start_tracing("tester")
with trace.get_tracer("t").start_as_current_span("work") as span:
    structlog.contextvars.bind_contextvars(request_id="r1")
    structlog.get_logger().info("own line", count=3)
    logging.getLogger("library").warning("library line %s", 4)
    structlog.get_logger().debug("too low")
stop_tracing()
"""


def run(**variables: str) -> list[dict[str, object]]:
    """The lines that the program logs."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_a_log_line_is_json_with_its_trace() -> None:
    """Ours and the libraries' alike; also where no span leaves the process."""
    own, library = run()

    assert (own["event"], own["count"], own["level"], own["service"]) == ("own line", 3, "info", "tester")
    assert library["event"] == "library line 4"
    assert library["logger"] == "library"
    assert own["trace_id"] == library["trace_id"]
    assert len(str(own["trace_id"])) == 32
    assert own["request_id"] == library["request_id"] == "r1"


@pytest.mark.parametrize(
    ("variables", "arrives"),
    [
        ({}, True),
        ({"OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_spans_leave_if_there_is_where_to(variables: dict[str, str], arrives: bool) -> None:
    """To the endpoint, unless the standard variables say no."""
    with otlp_receiver() as receiver:
        run(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint, **variables)
        assert [span.service for span in receiver.spans] == (["tester"] if arrives else [])


def test_the_service_name_of_the_environment_goes_first() -> None:
    """OTEL_SERVICE_NAME is the operator's word."""
    with otlp_receiver() as receiver:
        run(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint, OTEL_SERVICE_NAME="mine")
        assert [span.service for span in receiver.spans] == ["mine"]


def test_an_exporter_that_is_not_there_is_told() -> None:
    """And stops nothing."""
    lines = run(OTEL_TRACES_EXPORTER="zipkin", OTEL_EXPORTER_OTLP_PROTOCOL="grpc")

    assert any("zipkin" in str(line["event"]) for line in lines)
    assert any("http/protobuf" in str(line["event"]) for line in lines)


class Fruit(BaseSettings):
    """Settings of a test."""

    model_config = SettingsConfigDict(env_prefix="HERD_FRUIT_", frozen=True)

    size: int = Field(default=1)


def test_a_misspelt_setting_is_refused() -> None:
    """Known names and other prefixes pass."""
    refuse_unknown(Fruit, {"HERD_FRUIT_SIZE": "2", "herd_fruit_size": "2", "HERD_OTHER": "x", "PATH": "y"})
    with pytest.raises(WrongSettings, match="HERD_FRUIT_SISE"):
        refuse_unknown(Fruit, {"HERD_FRUIT_SISE": "2"})
