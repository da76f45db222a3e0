"""`buf curl` calls the gateway with nothing but reflection: no proto file, no generated code."""

import json
from collections.abc import Mapping
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
        "llamaherd.v1.ChatService/EndSession",
        "llamaherd.v1.ChatService/Interrupt",
        "llamaherd.v1.ChatService/OpenSession",
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


def test_models_are_described_and_text_is_encoded_and_decoded(gateway: str, run: Run) -> None:
    """Every method of ModelService: what is served, ids with the bytes they stand for, and back to the text."""

    def ask(method: str, request: Mapping[str, Any]) -> Any:
        done = run(*CURL, "-d", json.dumps(request), f"http://{gateway}/llamaherd.v1.ModelService/{method}")
        assert done.returncode == 0, done.stderr
        (answer,) = parse_stream(done.stdout)
        return answer

    text = "Count to ten, ça va?"
    (listed,) = ask("ListModels", {})["models"]
    described = ask("GetModel", {"name": listed["name"]})["model"]
    tokens = ask("Tokenize", {"text": text, "addBos": False})["tokens"]
    counted = ask("CountTokens", {"spec": {"prompt": text}})["promptTokens"]
    decoded = ask("Detokenize", {"ids": [token["id"] for token in tokens]})["text"]

    assert described == listed
    assert described["liveWorkers"] == 1
    assert described["defaults"]["stopping"]["maxNewTokens"] > 0
    assert decoded == text
    assert b"".join(text.encode()[t.get("begin", 0) : t.get("end", 0)] for t in tokens) == text.encode()
    assert counted == len(tokens) + 1, "BOS comes first"


def test_health_is_told_by_model(gateway: str, run: Run) -> None:
    """As balancers and `grpc_health_probe -service=` ask for it."""
    asked = {"service": "llamaherd.v1.GenerationService/demo"}
    done = run(*CURL, "-d", json.dumps(asked), f"http://{gateway}/grpc.health.v1.Health/Check")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"status": "SERVING"}


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
