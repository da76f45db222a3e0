"""`buf curl` calls the gateway with nothing but reflection: no proto file, no generated code."""

import json
from typing import Any

import pytest

from tests.clients.conftest import Run

pytestmark = pytest.mark.timeout(300)  # the first call may install buf
CURL = ("scripts/buf.sh", "curl", "--protocol", "grpc", "--http2-prior-knowledge")


def test_reflection_lists_every_service(gateway: str, run: Run) -> None:
    """All methods of the API, and health, are found by asking the gateway."""
    done = run(*CURL, "--list-methods", f"http://{gateway}")

    assert done.returncode == 0, done.stderr
    methods = set(done.stdout.split())
    assert {
        "grpc.health.v1.Health/Check",
        "llamaherd.v1.ChatService/Chat",
        "llamaherd.v1.ChatService/Interrupt",
        "llamaherd.v1.ChatService/SendTurn",
        "llamaherd.v1.GenerationService/Attach",
        "llamaherd.v1.GenerationService/CancelGeneration",
        "llamaherd.v1.GenerationService/Complete",
        "llamaherd.v1.GenerationService/Generate",
        "llamaherd.v1.GenerationService/GetGeneration",
        "llamaherd.v1.GenerationService/SubmitGeneration",
        "llamaherd.v1.ModelService/CountTokens",
        "llamaherd.v1.ModelService/Detokenize",
        "llamaherd.v1.ModelService/GetModel",
        "llamaherd.v1.ModelService/ListModels",
        "llamaherd.v1.ModelService/Tokenize",
    } <= methods


def test_generate_streams_json(gateway: str, run: Run) -> None:
    """A JSON request is answered by a stream of JSON responses, from `accepted` to `completed`."""
    message = {"role": "ROLE_USER", "content": "Count to ten"}
    request = {"spec": {"chat": {"messages": [message]}, "sampling": {"temperature": 0}}}
    done = run(*CURL, "-d", json.dumps(request), f"http://{gateway}/llamaherd.v1.GenerationService/Generate")

    assert done.returncode == 0, done.stderr
    responses = parse_stream(done.stdout)
    tokens = [token for response in responses for token in response.get("tokens", ())]
    assert "accepted" in responses[0]
    assert "10" in "".join(token.get("text", "") for token in tokens)
    assert responses[-1]["completed"]["usage"]["outputTokens"] == len(tokens)


def test_an_error_shows_its_details(gateway: str, run: Run) -> None:
    """A refused request shows its code and the types of its details."""
    request = {"spec": {"prompt": "x", "sampling": {"temperature": -1}}}
    done = run(*CURL, "-d", json.dumps(request), f"http://{gateway}/llamaherd.v1.GenerationService/Generate")

    assert done.returncode != 0
    error = json.loads(done.stderr)
    assert error["code"] == "invalid_argument"
    assert {"google.rpc.ErrorInfo", "google.rpc.BadRequest"} <= {detail["type"] for detail in error["details"]}


def parse_stream(text: str) -> list[dict[str, Any]]:
    """The JSON objects that stand one after the other in `text`."""
    decoder = json.JSONDecoder()
    found = []
    while text := text.lstrip():
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:]
    return found
