"""`herd chat`: a person at a terminal, and a pipe."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llamaherd.client import AsyncClient
from tests.clients.python.gateway_processes import GatewayProcess, gateway_processes, reader_of
from tests.herd_process import ROOT, HerdProcess, children_of, is_alive
from tests.until import until_now

PROMPT = "> "
CTRL_C, CTRL_D, CTRL_P = "\x03", "\x04", "\x10"


class Terminal:
    """A program at a pseudo-terminal, and all that it has shown."""

    def __init__(self, *command: str) -> None:
        self._ours, theirs = os.openpty()
        # setsid makes the pseudo-terminal the program's own, so that its Ctrl-C is a signal
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            cwd=ROOT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(theirs)
        self.shown = ""
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._ours, text.encode())

    def wait_for(self, pattern: str, since: int = 0) -> str:
        """What is shown after position `since`, once the pattern is in it."""
        try:
            until_now(lambda: re.search(pattern, self.shown[since:], re.DOTALL), 90, pattern)
        except TimeoutError as error:
            raise AssertionError(self.shown) from error
        return self.shown[since:]

    def ask(self, line: str, pattern: str) -> str:
        """Say something at the prompt; what is shown up to the next prompt, which has the pattern in it."""
        since = len(self.shown)
        self.type(line + "\n")
        return self.wait_for(rf"{pattern}.*\n{PROMPT}$", since)

    def close(self) -> None:
        """Whatever it does."""
        self.process.kill()
        self.process.wait()
        self._reading.join()
        os.close(self._ours)

    def _read(self) -> None:
        while True:
            try:
                chunk = os.read(self._ours, 65536)
            except OSError:  # how Linux tells the end
                return
            self.shown += chunk.decode(errors="replace").replace("\r\n", "\n")


@contextmanager
def herd_chat(*arguments: str) -> Iterator[Terminal]:
    """`herd chat` with these arguments, at its first prompt."""
    terminal = Terminal(sys.executable, "-m", "herd", "chat", *arguments)
    try:
        terminal.wait_for(rf"\n{PROMPT}$")
        yield terminal
    finally:
        terminal.close()


@pytest.fixture
async def pair(herd_up: HerdProcess, tmp_path: Path) -> AsyncIterator[list[GatewayProcess]]:
    """Two gateways of the herd, this test's own."""
    async with gateway_processes(herd_up.redis_url, 2, tmp_path) as gateways:
        yield gateways


def test_a_pipe_is_a_conversation(herd_up: HerdProcess) -> None:
    """Each line is a turn, each answer goes to standard output, and nothing else does."""
    command = [sys.executable, "-m", "herd", "chat", "--address", herd_up.address, "--temperature", "0", "--stats"]
    done = subprocess.run(
        command, cwd=ROOT, input="Count to ten\n\nCount to ten\n", capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert all("9, 10" in line for line in done.stdout.splitlines())
    first, second = map(int, re.findall(r"prompt of (\d+) tokens", done.stderr))
    assert second > first, "the first turn is recalled by the second's prompt"


def test_a_turn_that_fails_is_told_and_the_next_is_answered(herd_up: HerdProcess) -> None:
    """On standard error; the exit status tells it too."""
    command = [sys.executable, "-m", "herd", "chat", "--address", herd_up.address, "--temperature", "0"]
    too_long = "word " * 2000
    done = subprocess.run(
        command, cwd=ROOT, input=f"{too_long}\nCount to ten\n", capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 1
    assert "INVALID_ARGUMENT" in done.stderr
    assert "9, 10" in done.stdout


def test_a_herd_of_its_own_lives_as_long_as_the_conversation() -> None:
    """`--up`: Ctrl-C interrupts the answer, not the herd; what was said comes back by Ctrl-P; Ctrl-D ends both."""
    with herd_chat("--up", "--temperature", "0") as terminal:
        (herd,) = children_of(terminal.process.pid)
        since = len(terminal.shown)
        terminal.type("Count to 150\n")
        terminal.wait_for("4, 5", since)
        terminal.type(CTRL_C)
        terminal.wait_for(rf"interrupted.*\n{PROMPT}$", since)
        assert "9, 10" in terminal.ask("Count to ten", "9, 10")
        assert "9, 10" in terminal.ask(CTRL_P, "9, 10")

        terminal.type(CTRL_D)
        assert terminal.process.wait(60) == 0
    assert not is_alive(herd)


async def test_a_conversation_at_a_terminal(herd_up: HerdProcess, pair: list[GatewayProcess]) -> None:
    """Turns with recall, a Ctrl-C that leaves the conversation standing, a gateway killed in mid-turn; then Ctrl-D."""
    addresses = [word for gateway in pair for word in ("--address", gateway.address)]
    with herd_chat(*addresses, "--temperature", "0") as terminal:
        assert "Ann" in terminal.ask("My name is Ann.", "Ann!")
        handle = terminal.ask("/handle", r"\w").split("\n")[1]
        assert "tokens/s" in terminal.ask("/stats", "the first after")

        since = len(terminal.shown)
        terminal.type("Count to 150\n")
        terminal.wait_for("4, 5", since)
        terminal.type(CTRL_C)
        assert ", 150" not in terminal.wait_for(rf"interrupted.*\n{PROMPT}$", since)
        assert "Ann" in terminal.ask("What is my name?", "tokens/s").partition("name?")[2]

        since = len(terminal.shown)
        terminal.type("Count to 100\n")
        terminal.wait_for("4, 5", since)
        async with AsyncClient([gateway.address for gateway in pair]) as client, client.chat(handle=handle) as chat:
            generation_id = chat.running_generation_id
        (await reader_of(herd_up.redis_url, generation_id, pair)).send(signal.SIGKILL)
        answer = terminal.wait_for(rf"prompt of (\d+) tokens.*\n{PROMPT}$", since)
        counted = re.findall(r"\d+", answer.partition("Count to 100")[2].partition("prompt of")[0])
        assert counted == [str(n) for n in range(1, 101)], "nothing is lost, nothing comes twice"
        assert "Ann" in terminal.ask("What is my name?", "tokens/s").partition("name?")[2]

        terminal.type(CTRL_D)
        assert terminal.process.wait(30) == 0
