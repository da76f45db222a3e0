"""Programs in Go and Node, on a client and on the protos alone, stream answers and read typed errors as Python does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from llamaherd.v1 import common_pb2, generation_pb2, generation_pb2_grpc
from tests.clients.conftest import Run
from tests.clients.scripted_service import Context, serve, text_response

QUESTION = "Count to ten"

# The first test of a session builds the Go client, and its libraries when nothing is cached.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(params=["go", "node"])
def client(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The client's command, less its flags."""
    if request.param == "go":
        programs: Path = request.getfixturevalue("go_programs")
        return (str(programs / "generate"), "-patience=0s")  # tells of the first failure
    folder: Path = request.getfixturevalue("node_client")
    return ("node", str(folder / "generate.js"))


def test_a_client_prints_what_python_receives(client: tuple[str, ...], gateway: str, run: Run) -> None:
    """A chat message comes back as the same text in every language (greedy, so that it is one text)."""
    done = run(*client, "--address", gateway, "--temperature=0", QUESTION)

    assert done.returncode == 0, done.stderr
    assert done.stdout == ask_in_python(gateway, QUESTION) + "\n"
    assert "10" in done.stdout


def test_a_client_reads_the_typed_error(client: tuple[str, ...], gateway: str, run: Run) -> None:
    """A bad field is INVALID_ARGUMENT with its ErrorInfo and the BadRequest violation that names the field."""
    done = run(*client, "--address", gateway, "--temperature=-1", QUESTION)

    assert done.returncode == 1
    code, reason, *fields = done.stderr.splitlines()
    assert code.startswith("INVALID_ARGUMENT: ")
    assert reason == "reason INVALID_REQUEST (llamaherd.dev)"
    assert len(fields) == 1
    assert fields[0].partition(": ")[0].endswith("sampling.temperature")


async def test_text_is_printed_as_it_comes(client: tuple[str, ...]) -> None:
    """A token is on the screen while the service has not yet made the next one."""
    first_was_printed = asyncio.Event()

    async def script(_: generation_pb2.GenerateRequest, context: Context) -> None:
        await context.write(text_response("one "))
        await first_was_printed.wait()
        await context.write(text_response("two", position=1))
        await context.write(generation_pb2.GenerateResponse(completed=common_pb2.Completed()))

    async with serve(script) as address, start(client, address) as process:
        assert process.stdout is not None
        assert await process.stdout.readexactly(4) == b"one "
        first_was_printed.set()
        assert await process.stdout.read() == b"two\n"
        assert await process.wait() == 0


async def test_an_end_without_completed_is_told(client: tuple[str, ...]) -> None:
    """A stream that ends OK before `completed` broke the service's promise, and the client does not hide it."""

    async def script(_: generation_pb2.GenerateRequest, context: Context) -> None:
        await context.write(text_response("one"))

    async with serve(script) as address, start(client, address) as process:
        stdout, stderr = await process.communicate()
        assert stdout == b"one\n"
        assert b"completed" in stderr
        assert process.returncode == 1


async def test_an_error_without_details_is_told(client: tuple[str, ...]) -> None:
    """A plain status, as proxies send, is printed with its code and message alone."""

    async def script(_: generation_pb2.GenerateRequest, context: Context) -> None:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not here")

    async with serve(script) as address, start(client, address) as process:
        _, stderr = await process.communicate()
        assert stderr.decode().splitlines() == ["PERMISSION_DENIED: not here"]
        assert process.returncode == 1


@asynccontextmanager
async def start(client: tuple[str, ...], address: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The client as a child with both outputs piped; gone at the end, whatever the test found."""
    process = await asyncio.create_subprocess_exec(
        *client, "--address", address, QUESTION, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def ask_in_python(gateway: str, question: str) -> str:
    """The greedy answer to one user message."""
    message = common_pb2.ChatMessage(role=common_pb2.ROLE_USER, content=question)
    spec = common_pb2.GenerationSpec(
        chat=common_pb2.ChatInput(messages=[message]), sampling=common_pb2.Sampling(temperature=0)
    )
    with grpc.insecure_channel(gateway) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        responses = stub.Generate(generation_pb2.GenerateRequest(spec=spec), timeout=60)
        return "".join(token.text for response in responses for token in response.tokens)
