"""Real gateways are killed, frozen and drained in mid-stream, and cables cut: the same text, byte for byte."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llamaherd.client import AsyncClient, Client
from llamaherd.v1 import common_pb2, generation_pb2
from tests.clients.python.both import Ask, Read
from tests.clients.python.gateway_processes import GatewayProcess, cable, gateway_processes, reader_of
from tests.herd_process import HerdProcess

NUM_TOKENS = 120
LOST_AFTER = 20


def wild_spec(num_choices: int = 1, num_tokens: int = NUM_TOKENS) -> common_pb2.GenerationSpec:
    """Almost flat sampling, to the last token: each depends on the seed and on all before it."""
    return common_pb2.GenerationSpec(
        prompt="Once upon a time",
        sampling=common_pb2.Sampling(temperature=20, top_k=1000, seed=11, n=num_choices),
        stopping=common_pb2.Stopping(max_new_tokens=num_tokens, ignore_eos=True),
    )


async def undisturbed(herd: HerdProcess, spec: common_pb2.GenerationSpec) -> generation_pb2.CompleteResponse:
    """What the spec gives when nothing happens."""
    async with AsyncClient(herd.address) as client:
        return await client.complete(spec, timeout_s=60)


@pytest.fixture
async def pair(herd_up: HerdProcess, tmp_path: Path) -> AsyncIterator[list[GatewayProcess]]:
    """Two gateways of the herd, this test's own."""
    async with gateway_processes(herd_up.redis_url, 2, tmp_path) as gateways:
        yield gateways


def assert_same(read: Read, expected: generation_pb2.CompleteResponse) -> None:
    """Text, ids and order of the undisturbed run, each token once."""
    assert read.error is None
    assert read.texts == [choice.text for choice in expected.choices]
    assert read.positions == list(range(expected.usage.output_tokens))
    ids = [[t.id for d in read.deltas if d.choice == n for t in d.tokens] for n in range(len(expected.choices))]
    assert ids == [[token.id for token in choice.tokens] for choice in expected.choices]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
async def test_a_gateway_lost_in_mid_stream_is_not_seen(
    ask: Ask, herd_up: HerdProcess, pair: list[GatewayProcess], number: signal.Signals
) -> None:
    """Killed; frozen, so that only its answers to pings stop; drained with no time left."""
    spec = wild_spec()
    expected = await undisturbed(herd_up, spec)
    lost: list[GatewayProcess] = []

    async def lose(read: Read) -> None:
        if len(read.positions) >= LOST_AFTER and not lost:
            lost.append(await reader_of(herd_up.redis_url, read.facts.generation_id, pair))
            lost[0].send(number)

    addresses = [gateway.address for gateway in pair]
    read = await ask(addresses, lambda c: c.generate(spec, timeout_s=90), on_delta=lose)

    assert lost
    assert_same(read, expected)


@pytest.mark.parametrize("num_choices", [1, 3])
async def test_a_cable_cut_after_every_message_is_not_seen(ask: Ask, herd_up: HerdProcess, num_choices: int) -> None:
    """No connection lives longer than one delta."""
    spec = wild_spec(num_choices, 24)
    expected = await undisturbed(herd_up, spec)
    num_cuts = 0
    async with cable(herd_up.address) as (address, cut):

        async def cut_now(_: Read) -> None:
            nonlocal num_cuts
            num_cuts += 1
            cut()

        read = await ask([address], lambda c: c.generate(spec, timeout_s=90), on_delta=cut_now)

    assert num_cuts >= 3
    assert_same(read, expected)


async def test_every_place_of_a_finished_generation_can_be_resumed(herd_up: HerdProcess) -> None:
    """Position and chain of each token, three choices; the rest is the rest."""
    spec = wild_spec(3, 8)
    expected = await undisturbed(herd_up, spec)
    async with AsyncClient(herd_up.address) as client:
        tokens = [t async for d in client.attach(expected.generation_id) for t in d.tokens]
        for at, token in enumerate(tokens, start=1):
            stream = client.attach(expected.generation_id, at, token.chain)
            assert [t async for d in stream for t in d.tokens] == tokens[at:]
            assert len(stream.finished) == 3


async def test_an_answer_at_once_survives_its_gateway(herd_up: HerdProcess, pair: list[GatewayProcess]) -> None:
    """Complete is asked again under the same request_id, and finds its generation."""
    spec = wild_spec()
    expected = await undisturbed(herd_up, spec)
    with Client([gateway.address for gateway in pair]) as client:
        accepted = client.submit(spec, request_id="lost-in-complete", resume_window_ms=60_000)
    spec.resume_window_ms = 60_000
    pair[0].send(signal.SIGKILL)
    async with AsyncClient([gateway.address for gateway in pair]) as client:
        again = await client.complete(spec, request_id="lost-in-complete", timeout_s=60)

    assert again.generation_id == accepted.generation_id
    assert again.choices[0].text == expected.choices[0].text


async def test_leaving_a_real_stream_cancels_it(ask: Ask, herd_up: HerdProcess) -> None:
    """The engine stops: fewer tokens than were asked for."""
    read = await ask([herd_up.address], lambda c: c.generate(wild_spec(), timeout_s=60), leave_after=2)

    async with AsyncClient(herd_up.address) as client:
        stream = client.attach(read.facts.generation_id)
        assert [d.choice async for d in stream if d.finished] == [0]
    assert stream.finished[0].reason == common_pb2.FINISH_REASON_CANCELLED
    assert stream.position < NUM_TOKENS
