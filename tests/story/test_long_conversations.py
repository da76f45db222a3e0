"""Conversations that grow, that two devices share, and that nobody went on with."""

import re
import subprocess
import sys

import pytest
import redis

from contract import keys
from llamaherd.client import Client, UnknownSession, assistant, system, user
from llamaherd.v1 import common_pb2
from tests.herd_process import ROOT, HerdProcess
from tests.until import until_now

CONTEXT = 1024  # the demo model's
NUM_NEW = 16
LONG = "Tell me of the llamas of the high plains, of the wool and of the weavers, and of the long way down. " * 3


def herd_chat(herd: HerdProcess, handle: str) -> "subprocess.Popen[str]":
    """`herd chat` goes on with a conversation, by the lines of its standard input."""
    command = [sys.executable, "-m", "herd", "chat", "--address", herd.address, "--handle", handle]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_a_conversation_outgrows_the_context(herd_up: HerdProcess) -> None:
    """The oldest turns leave the prompt whole, the system prompt stays, and whoever asks is told how many went."""
    first = system("You are a pirate.")
    said: list[common_pb2.ChatMessage] = []
    dropped = []
    with (
        Client(herd_up.address) as client,
        client.chat(system_prompt=first.content, temperature=0.0, max_new_tokens=NUM_NEW, ignore_eos=True) as chat,
    ):
        for turn in range(8):
            question = user(f"{turn}. {LONG}")
            stream = chat.send(question.content, timeout_s=60)
            text = "".join(delta.text for delta in stream)
            assert stream.turn is not None
            assert stream.usage is not None
            dropped.append(stream.turn.num_turns_dropped)
            prompt = [first, *said[2 * dropped[-1] :], question]
            assert stream.usage.prompt_tokens == client.count_tokens(prompt) <= CONTEXT - NUM_NEW
            said += [question, assistant(text)]
        assert dropped == sorted(dropped)
        assert dropped[0] == 0
        assert dropped[-1] > 0
        assert client.count_tokens([first, *said, user(LONG)]) > CONTEXT

        terminal = herd_chat(herd_up, chat.handle)
        _, shown = terminal.communicate(f"{LONG}\n", timeout=120)
        assert terminal.returncode == 0, shown
        told = re.search(r"left out: the (\d+) oldest turns", shown)
        assert told is not None
        assert int(told[1]) >= dropped[-1]


def test_two_devices_share_a_conversation(herd_up: HerdProcess) -> None:
    """Each goes on where the other stopped; a third looks in and changes nothing."""
    with (
        Client(herd_up.address) as laptop,
        Client(herd_up.address) as phone,
        laptop.chat(temperature=0.0) as here,
        phone.chat(handle=here.handle) as there,
    ):
        for chat, question in ((here, "My name is Ann."), (there, "What is my name?"), (here, "What is my name?")):
            answer = "".join(delta.text for delta in chat.send(question, timeout_s=60))
            assert "Ann" in answer
        with phone.chat(handle=here.handle) as again:
            assert (again.session_id, again.num_turns) == (here.session_id, 3)


def test_a_conversation_that_nobody_went_on_with_is_gone(herd_up: HerdProcess) -> None:
    """Its lifetime is an hour unless it was opened with another; afterwards every call is a typed NOT_FOUND."""
    with (
        redis.Redis.from_url(herd_up.redis_url) as server,
        Client(herd_up.address) as client,
        client.chat(temperature=0.0) as chat,
    ):
        terminal = herd_chat(herd_up, chat.handle)
        assert terminal.stdin is not None
        assert terminal.stdout is not None
        print("Count to ten", file=terminal.stdin, flush=True)
        assert "10" in terminal.stdout.readline()
        key = keys.chat(chat.session_id)
        left_ms = server.pttl(key)
        assert isinstance(left_ms, int)
        assert 1_800_000 < left_ms <= 3_600_000
        server.pexpire(key, 1)  # the hour is over
        until_now(lambda: not server.exists(key))

        with pytest.raises(UnknownSession) as caught:
            next(iter(chat.send("Are you there?")))
        assert (caught.value.reason, caught.value.code.name) == ("UNKNOWN_SESSION", "NOT_FOUND")
        with pytest.raises(UnknownSession):
            chat.interrupt()
        with pytest.raises(UnknownSession):
            client.chat(handle=chat.handle).open()

        answers, shown = terminal.communicate("Are you there?\nCount to ten\n", timeout=120)
        assert (terminal.returncode, answers) == (1, "")
        assert shown.count("NOT_FOUND: no session belongs to this handle; it has ended, or expired") == 1
