"""Conversations by the Python client, on real gateways with the demo model."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llamaherd.client import AsyncClient, ChatKnobs, Client, InvalidRequest, TurnRunning, UnknownSession
from llamaherd.v1 import common_pb2
from tests.clients.python.gateway_processes import GatewayProcess, gateway_processes, reader_of
from tests.herd_process import HerdProcess

NUM_TOKENS = 200
LONG: ChatKnobs = {"temperature": 20.0, "top_k": 1000, "seed": 5, "max_new_tokens": NUM_TOKENS, "ignore_eos": True}


@pytest.fixture
async def pair(herd_up: HerdProcess, tmp_path: Path) -> AsyncIterator[list[GatewayProcess]]:
    """Two gateways of the herd, this test's own."""
    async with gateway_processes(herd_up.redis_url, 2, tmp_path) as gateways:
        yield gateways


def test_turns_of_one_conversation(herd_up: HerdProcess) -> None:
    """Each answer is a stream with its facts; the history is the service's."""
    with Client(herd_up.address) as client, client.chat(temperature=0.0) as chat:
        for turn in range(3):
            stream = chat.send("Count to ten", timeout_s=60)
            assert "10" in "".join(delta.text for delta in stream)
            assert stream.turn is not None
            assert stream.turn.turn == turn
            assert stream.usage is not None
            assert stream.usage.output_tokens == stream.position
            assert stream.finished[0].reason == common_pb2.FINISH_REASON_EOS
        assert stream.usage is not None
        assert stream.usage.prompt_tokens > 2 * client.count_tokens("Count to ten")

        with client.chat(handle=chat.handle) as again:
            assert again.num_turns == 3
            assert again.session_id == chat.session_id
            again.end()
        with pytest.raises(UnknownSession):
            "".join(delta.text for delta in chat.send("And now?"))


async def test_turns_with_asyncio(herd_up: HerdProcess) -> None:
    """The same methods, awaited."""
    async with AsyncClient(herd_up.address) as client, client.chat(temperature=0.0) as chat:
        text = "".join([delta.text async for delta in chat.send("Count to ten", timeout_s=60)])
        assert "10" in text
        assert chat.settings.sampling.temperature == 0
        await chat.end()
        with pytest.raises(UnknownSession):
            await anext(aiter(chat.send("And now?")))


def test_a_break_interrupts_the_answer_and_keeps_what_was_read(herd_up: HerdProcess) -> None:
    """The next turn begins as soon as the engine has let go of it."""
    with Client(herd_up.address) as client, client.chat(**LONG) as chat:
        for _ in chat.send("Tell me a story"):
            break
        stream = chat.send("Another one", timeout_s=60)
        for n, _ in enumerate(stream):
            if n == 1:
                assert chat.interrupt(), "from within, as a thread of its own might"
        assert stream.finished[0].reason == common_pb2.FINISH_REASON_CANCELLED
        assert stream.position < NUM_TOKENS
        assert stream.turn is not None
        assert stream.turn.turn == 1
        assert not chat.interrupt(), "nothing runs"


async def test_a_break_with_asyncio(herd_up: HerdProcess) -> None:
    """The next turn waits for the farewell of the one before."""
    async with AsyncClient(herd_up.address) as client, client.chat(**LONG) as chat:
        for _ in range(2):
            async for _ in chat.send("Tell me a story"):
                break
        stream = chat.send("The last one", timeout_s=60)
        was_running = False
        async for _ in stream:
            if stream.position > 5:
                was_running |= await chat.interrupt()
        assert was_running
        assert stream.turn is not None
        assert stream.turn.turn == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_gateway_lost_in_mid_turn_is_not_seen(
    herd_up: HerdProcess, pair: list[GatewayProcess], number: signal.Signals
) -> None:
    """The turn goes on at the other; the conversation too."""
    async with AsyncClient([gateway.address for gateway in pair]) as client, client.chat(**LONG) as chat:
        stream = chat.send("Tell me a story", timeout_s=90)
        ids: list[int] = []
        lost: list[GatewayProcess] = []
        async for delta in stream:
            ids += [token.id for token in delta.tokens]
            if len(ids) >= 20 and not lost:
                async with client.chat(handle=chat.handle) as again:
                    generation_id = again.running_generation_id
                lost.append(await reader_of(herd_up.redis_url, generation_id, pair))
                lost[0].send(number)
        assert len(ids) == NUM_TOKENS
        async with client.chat(handle=chat.handle) as again:
            assert again.num_turns == 1


async def test_a_turn_left_running_is_read_elsewhere(herd_up: HerdProcess) -> None:
    """Another program resumes by the handle, reads the turn by `attach`, and goes on."""
    async with AsyncClient(herd_up.address) as one, AsyncClient(herd_up.address) as two:
        chat = one.chat(**LONG)
        await chat.open()
        stream = chat.send("Tell me a story")
        reading = asyncio.ensure_future(anext(aiter(stream)))
        await reading
        async with two.chat(handle=chat.handle) as again:
            assert again.running_generation_id
            with pytest.raises(TurnRunning):
                await anext(aiter(again.send("Me first")))
            rest = two.attach(again.running_generation_id)
            assert len([t async for d in rest for t in d.tokens]) == NUM_TOKENS
            await again.end()


async def test_a_bad_setup_is_told_at_once(herd_up: HerdProcess) -> None:
    """Opening asks the service."""
    async with AsyncClient(herd_up.address) as client:
        with pytest.raises(InvalidRequest) as caught:
            await client.chat(temperature=-1.0).open()
        with pytest.raises(UnknownSession):
            await client.chat(handle="nobody's").open()
    assert [violation.field for violation in caught.value.violations] == ["setup.sampling.temperature"]


def test_an_unopened_conversation_has_no_facts() -> None:
    """Forgetting the `with` is told as such."""
    with Client() as client, pytest.raises(RuntimeError, match="not open"):
        client.chat().send("Hello")
