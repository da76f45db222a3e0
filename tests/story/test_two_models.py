"""Two models in one herd: one Redis, one gateway, a worker each."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from contract.broker import Broker
from contract.lifetime import spawn
from herd.up import DEMO_MODEL
from llamaherd.v1 import common_pb2, generation_pb2, generation_pb2_grpc, model_pb2, model_pb2_grpc
from tests.herd_process import HerdProcess, herd_up
from tests.service.error_details import details_of
from tests.story.conftest import assert_no_lasting_keys
from tests.story.test_one_answer import herd
from tests.tiny_llama import write_tiny_llama
from tests.until import until

PROMPT = "Count to ten"


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HerdProcess]:
    """`herd up` with the demo model and a tiny one with random weights, called `other`."""
    tiny = write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")
    models = ("--model", str(DEMO_MODEL), "--model-name", "demo", "--model", str(tiny), "--model-name", "other")
    with herd_up("--device", "cpu", *models) as running:
        yield running


@pytest.fixture(autouse=True)
def no_lasting_keys(two_models: HerdProcess) -> Iterator[None]:
    """This herd's Redis stays clean, not the shared one's."""
    yield
    assert_no_lasting_keys(two_models)


async def complete(address: str, model: str, prompt: str = PROMPT) -> Any:
    """An answer of 12 tokens at most, greedy; or the error."""
    spec = common_pb2.GenerationSpec(model=model, prompt=prompt)
    spec.sampling.temperature = 0
    spec.stopping.max_new_tokens = 12
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)
        return await stub.Complete(generation_pb2.CompleteRequest(spec=spec), timeout=60)


async def test_each_model_answers_for_itself(two_models: HerdProcess) -> None:
    """The same prompt gets each model's own answer, by that model's own worker: no worker ever asks for the other's."""
    answers = {model: await complete(two_models.address, model) for model in ("demo", "other")}
    again = {model: await complete(two_models.address, model) for model in ("demo", "other")}

    assert {model: answer.settings.model for model, answer in answers.items()} == {"demo": "demo", "other": "other"}
    texts = {model: answer.choices[0].text for model, answer in answers.items()}
    assert texts == {model: answer.choices[0].text for model, answer in again.items()}
    assert texts["demo"] != texts["other"]
    broker = Broker.connect(two_models.redis_url)
    pool = {worker.worker_id: worker.fields["model"] for worker in await broker.pool()}
    asked = {model: await broker.consumers(model) for model in answers}
    await broker.close()
    assert {model: [pool[worker] for worker in workers] for model, workers in asked.items()} == {
        "demo": ["demo"],
        "other": ["other"],
    }


async def test_a_request_has_to_say_which(two_models: HerdProcess) -> None:
    """The error names the field and both models."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await complete(two_models.address, model="")

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    (violation,) = details_of(caught.value)[1].field_violations
    assert violation.field == "spec.model"
    assert "demo, other" in violation.description


def test_the_command_line_shows_both(two_models: HerdProcess) -> None:
    """`herd models`: a table for people, ListModels' JSON for programs."""
    table = herd("models", "--address", two_models.address)
    as_json = herd("models", "--json", "--address", two_models.address)

    assert table.returncode == as_json.returncode == 0, table.stderr + as_json.stderr
    rows = {line.split()[0]: line for line in table.stdout.splitlines()}
    assert rows.keys() == {"model", "demo", "other"}
    assert all(part in rows["other"] for part in ("serving", "256", "900", "int8", "greedy"))
    models = {model["name"]: model for model in json.loads(as_json.stdout)["models"]}
    assert models["other"]["context_length"] == 256
    assert models["demo"]["live_workers"] == models["other"]["live_workers"] == 1
    assert models["demo"]["chat_format"] == "CHAT_FORMAT_LLAMA2"


async def test_a_model_that_loses_its_workers_can_be_retried_and_the_other_goes_on(two_models: HerdProcess) -> None:
    """Its requests end with NO_WORKER and a retry delay, its health with NOT_SERVING; `herd models --watch` tells."""
    supervisor = two_models.pids["worker-1"]
    with watching_models(two_models.address) as watching:
        assert names_in(watching.readline()) == ["demo", "other"]
        os.kill(supervisor, signal.SIGSTOP)
        try:
            assert names_in(watching.readline()) == ["demo"]
            await until(lambda: is_not_serving(two_models.address, "other"))
            await assert_can_be_retried(two_models.address)
            assert not await is_not_serving(two_models.address, "demo")
            assert (await complete(two_models.address, "")).settings.model == "demo", "the only one that is served now"
        finally:
            os.kill(supervisor, signal.SIGCONT)
        assert names_in(watching.readline()) == ["demo", "other"]
    assert (await complete(two_models.address, "other")).settings.model == "other"


async def assert_can_be_retried(address: str) -> None:
    """`other` is known and has no worker: what is asked of it may succeed later."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await complete(address, "other")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    info, _, retry = details_of(caught.value)
    assert info.reason == "NO_WORKER"
    assert retry.ToMilliseconds() > 0
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = model_pb2_grpc.ModelServiceStub(channel)
        assert (await stub.GetModel(model_pb2.GetModelRequest(name="other"))).model.live_workers == 0


@contextmanager
def watching_models(address: str) -> Iterator[IO[bytes]]:
    """`herd models --watch --json`, and what it prints; ended with Ctrl-C, which is no error."""
    command = [sys.executable, "-m", "herd", "models", "--watch", "--json", "--address", address]
    with spawn(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield process.stdout
        except BaseException:
            process.kill()
            raise
        process.send_signal(signal.SIGINT)
    assert process.returncode == 0


def names_in(line: bytes) -> list[str]:
    """The models of one line of JSON."""
    return [model["name"] for model in json.loads(line)["models"]]


async def is_not_serving(address: str, model: str) -> bool:
    """What Check says of the model."""
    async with grpc.aio.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=f"llamaherd.v1.GenerationService/{model}")
        answer = await health_pb2_grpc.HealthStub(channel).Check(request)
    return bool(answer.status == health_pb2.HealthCheckResponse.NOT_SERVING)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--model", "/nowhere"), "/nowhere is no model folder"),
        (("--model-name", "a", "--model-name", "b"), "2 names for 1 models"),
        (("--model", str(DEMO_MODEL), "--model", str(DEMO_MODEL)), "two models are called 'demo'"),
    ],
)
def test_models_that_cannot_be_told_apart_are_refused(arguments: tuple[str, ...], text: str) -> None:
    """Before anything is started."""
    done = herd("up", *arguments)

    assert done.returncode == 2
    assert text in " ".join(done.stderr.split())
