"""One answer, from the command line, through every process of a herd."""

import json
import subprocess
import sys

from tests.herd_process import ROOT, HerdProcess


def herd(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the `herd` command."""
    command = [sys.executable, "-m", "herd", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_an_answer_is_streamed_to_the_terminal(herd_up: HerdProcess) -> None:
    """`herd generate` prints the model's answer and nothing else to standard output."""
    done = herd("generate", "Count to ten", "--address", herd_up.address)

    assert done.returncode == 0, done.stderr
    assert "1, 2, 3, 4, 5, 6, 7, 8, 9, 10" in done.stdout


def test_json_shows_every_message_in_order(herd_up: HerdProcess) -> None:
    """accepted, started, tokens without gap, choice_finished, completed."""
    done = herd("generate", "Count to ten", "--json", "--address", herd_up.address)
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    events = [next(iter(message)) for message in messages]
    positions = [token.get("position", 0) for message in messages for token in message.get("tokens", [])]

    assert events[0] == "accepted"
    assert events[-2:] == ["choice_finished", "completed"]
    assert events.count("tokens") > 3, "tokens come as they are made, not all at the end"
    assert positions == list(range(len(positions)))
    assert messages[-1]["completed"]["usage"]["output_tokens"] == len(positions)


def test_a_seed_repeats_a_sampled_answer(herd_up: HerdProcess) -> None:
    """The same seed gives the same text; sampling is on."""
    ask = ("generate", "Tell me a story", "--temperature", "1.5", "--address", herd_up.address)

    first, again, other = (herd(*ask, "--seed", seed).stdout for seed in ("7", "7", "8"))

    assert first == again != other


def test_a_stop_string_ends_the_answer_before_it(herd_up: HerdProcess) -> None:
    """The stop string is not part of the text."""
    done = herd("generate", "Count to ten", "--stop", ", 5", "--address", herd_up.address)

    assert done.stdout.strip().endswith("4")


def test_a_bad_field_is_a_typed_error(herd_up: HerdProcess) -> None:
    """What the gateway refuses: exit status 1, the code and the field on standard error."""
    done = herd("generate", "hi", "--stop", "", "--address", herd_up.address)

    assert done.returncode == 1
    assert "INVALID_ARGUMENT" in done.stderr
    assert "spec.stopping.stop_strings" in done.stderr


def test_nothing_listens_is_a_clear_error() -> None:
    """No stack trace, exit status 1."""
    done = herd("generate", "hi", "--address", "127.0.0.1:1", "--timeout", "5")

    assert done.returncode == 1
    assert "UNAVAILABLE" in done.stderr
    assert "Traceback" not in done.stderr


def test_with_several_addresses_one_that_is_gone_does_not_matter(herd_up: HerdProcess) -> None:
    """The client goes on to the next."""
    done = herd("generate", "Count to ten", "--address", "127.0.0.1:1", "--address", herd_up.address)

    assert done.returncode == 0, done.stderr
    assert "1, 2, 3, 4, 5, 6, 7, 8, 9, 10" in done.stdout
