"""Attach and SubmitGeneration: any reader, at any gateway, from any position, gets the same bytes."""

import asyncio
from contextlib import AsyncExitStack

from hypothesis import given, settings
from hypothesis import strategies as st

from contract import keys
from contract.broker import Broker
from contract.messages import ChoiceEnd
from llamaherd.v1 import common_pb2, generation_pb2
from tests.redis_server import RunningServer
from tests.service.gateways import RunningGateway, open_stream, prompt, read_rest, running_gateway
from tests.service.resumed import Resumed, attach, attaching, begin, read_all, read_tokens
from tests.service.scripted_worker import ScriptedWorker, Work
from tests.until import until


async def say_three_choices(work: Work) -> None:
    """Three choices whose tokens interleave; two of them end before the last, one within a row of several tokens."""
    await work.say_in((0, "a0"), (1, "b0"), (2, "c0"))
    await work.say_in((0, "a1"), (1, "b1"))
    await work.say_in((2, "c1"), (0, "a2"), (1, "b2"), ends=(ChoiceEnd(1, "EOS", 3, text="held"),))
    await work.say_in((2, "c2"))
    await work.say_in((0, "a3"), (2, "c3"), (2, "c4"), ends=(ChoiceEnd(0, "LENGTH", 4),))
    await work.say_in((2, "c5"), (2, "c6"))


ENDS = (ChoiceEnd(0, "LENGTH", 4), ChoiceEnd(1, "EOS", 3, text="held"), ChoiceEnd(2, "STOP_STRING", 7, "X", ""))


async def test_every_position_of_a_finished_generation_gives_the_same_bytes(
    gateway: RunningGateway, other: RunningGateway, worker: ScriptedWorker
) -> None:
    """Three choices, a second gateway: tokens from the position on, every choice's end once, the same `completed`."""
    call, first, work = await begin(gateway, worker, "all positions")
    await say_three_choices(work)
    await work.finish(ends=ENDS)
    await read_rest(call, first)
    whole = await attach(other, first.generation_id)
    total = len(work.tokens)

    assert [t.SerializeToString() for t in whole.tokens] == [
        t.SerializeToString() for m in first.messages for t in m.tokens
    ]
    for position in range(total + 1):
        chain = whole.tokens[position - 1].chain if position else 0
        for proof in (None, chain):
            resumed = await attach(other, first.generation_id, position, proof)
            assert resumed.messages[0].accepted == first.messages[0].accepted
            assert resumed.tokens == whole.tokens[position:]
            assert resumed.token_bytes == joined(whole.tokens[position:])
            assert resumed.finishes == whole.finishes
            assert resumed.messages[-1] == whole.messages[-1]
            assert [m.started.attempt for m in resumed.messages if m.HasField("started")] == [1]


async def test_every_position_of_a_live_generation_gives_the_same_bytes(
    gateway: RunningGateway, other: RunningGateway, worker: ScriptedWorker
) -> None:
    """A reader at each position from the beginning, those ahead of the log included; all get the same rest."""
    call, first, work = await begin(gateway, worker, "live positions")
    readers = [attaching(other, first.generation_id, position) for position in range(15)]
    for reader, _ in readers:
        assert (await reader.read()).accepted == first.messages[0].accepted
    await say_three_choices(work)
    late = [attaching(other, first.generation_id, position) for position in range(len(work.tokens) + 1)]
    for reader, _ in late:
        assert (await reader.read()).accepted == first.messages[0].accepted
    await work.finish(ends=ENDS)
    await read_rest(call, first)
    tokens = [token for message in first.messages for token in message.tokens]
    assert len(tokens) == 14

    for reader, resumed in readers + late:
        await read_all(reader, resumed)
        assert resumed.token_bytes == joined(tokens[resumed.from_position :])
        assert sorted(resumed.finishes) == [0, 1, 2]
        assert resumed.messages[-1].completed == first.messages[-1].completed


def joined(tokens: list[common_pb2.Token]) -> bytes:
    """As one message."""
    return generation_pb2.AttachResponse(tokens=tokens).SerializeToString()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    cut=st.integers(0, 6),
    position=st.integers(0, 24),
    hands_back=st.booleans(),
)
async def test_a_reader_that_comes_back_rebuilds_everything(
    gateway: RunningGateway,
    other: RunningGateway,
    worker: ScriptedWorker,
    sizes: list[int],
    cut: int,
    position: int,
    hands_back: bool,
) -> None:
    """It comes at any point of the log's growth, with what it had; in sum it has what a reader from the start has."""
    request_id = f"rebuild {keys.new_id()}"
    call, first, work = await begin(gateway, worker, request_id)
    position = min(position, sum(sizes[:cut]))
    number, resumed, reader = 0, Resumed(0), None
    for index, size in enumerate(sizes):
        if index == cut:
            reader, resumed = attaching(other, first.generation_id, position)
        await work.say_in(*(((number + n) % 3, f"{number + n} ") for n in range(size)))
        number += size
        if hands_back and index == 1:
            await worker.hand_back(work)
            tokens, work = work.tokens, await worker.adopt(first.generation_id)
            work.tokens = tokens
    if reader is None:
        reader, resumed = attaching(other, first.generation_id, position)
    await work.finish(ends=[ChoiceEnd(choice, "EOS", 1) for choice in range(3)])
    await read_rest(call, first)
    await read_all(reader, resumed)

    tokens = [token for message in first.messages for token in message.tokens]
    assert tokens[:position] + resumed.tokens == tokens
    assert sorted(resumed.finishes) == [0, 1, 2]
    attempts = [m.started.attempt for m in resumed.messages if m.HasField("started")]
    assert attempts == sorted(set(attempts))
    assert attempts[-1] == resumed.messages[-1].completed.attempts


async def test_ten_readers_of_one_generation(
    gateway: RunningGateway, other: RunningGateway, worker: ScriptedWorker
) -> None:
    """At two gateways, from different positions, while it is made: the same tokens, and each choice's end once."""
    call, first, work = await begin(gateway, worker, "ten readers")
    await say_three_choices(work)
    readers = [attaching((gateway, other)[n % 2], first.generation_id, n) for n in range(10)]
    for n in range(50):
        await work.say_in((2, f"{n}"))
    await work.finish(ends=ENDS)
    await read_rest(call, first)
    await asyncio.gather(*(read_all(reader, resumed) for reader, resumed in readers))

    tokens = [token for message in first.messages for token in message.tokens]
    assert len(tokens) == 64
    for _, resumed in readers:
        assert resumed.tokens == tokens[resumed.from_position :]
        assert sorted(resumed.finishes) == [0, 1, 2]


async def test_readers_at_six_gateways_get_everything_and_keep_it_alive(
    valkey: RunningServer, gateway: RunningGateway, worker: ScriptedWorker, broker: Broker
) -> None:
    """Four gateways get rows; the others read the log, and take the place of those that leave."""
    async with AsyncExitStack() as stack:
        gateways = [await stack.enter_async_context(running_gateway(valkey.url)) for _ in range(5)]
        request = prompt()  # without a window: cancelled at once when nobody reads
        call, first = await open_stream(gateway, request)
        work = await worker.take(first.generation_id)
        readers = []
        for each in gateways:
            readers.append(attaching(each, first.generation_id))
            assert (await readers[-1][0].read()).HasField("accepted")
        assert len(await names(broker, first.generation_id, "readers")) == 4
        assert len(await names(broker, first.generation_id, "pollers")) == 2

        await work.say("a", "b")
        for reader, resumed in readers:
            await read_tokens(reader, resumed, 2)
        call.cancel()
        for reader, _ in readers[:4]:
            reader.cancel()
        await until(lambda: has_one_reader(broker, first.generation_id), what="five have left")
        assert not (await work.say("c")).cancel
        await work.finish()
        last = await read_all(*readers[4])

    assert "".join(token.text for token in last.tokens) == "abc"
    assert last.kinds[-2:] == ["choice_finished", "completed"]


async def names(broker: Broker, generation_id: str, which: str) -> list[str]:
    """The gateways in a field of the record."""
    raw = await broker._client.hget(keys.record(generation_id), which)
    return [name for name in (raw or b"").decode().split(",") if name]


async def has_one_reader(broker: Broker, generation_id: str) -> bool:
    """And nobody who polls."""
    readers, pollers = [await names(broker, generation_id, which) for which in ("readers", "pollers")]
    return (len(readers), len(pollers)) == (1, 0)
