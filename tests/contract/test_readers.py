"""attach, the log, the inbox: what a reader sees, and that nothing it needs is only in the hint."""

import dataclasses

import pytest

from contract import keys
from contract.broker import State
from contract.errors import UnknownGeneration
from contract.log_pages import PAGE_BYTES, LogPage, LogPlace
from contract.messages import AttemptMark, Ending, LogEntry, TokenRow
from tests.contract.rig import CALLER, GATEWAY, Rig, make_job


async def test_an_attached_gateway_gets_rows_from_then_on(rig: Rig) -> None:
    """attach tells what stands; the inbox what comes; the log has all."""
    taken, text = await rig.start(window_ms=30_000)
    await rig.step(text.row(taken.lease, 0, 2))
    await rig.broker.gateway_beat("gateway-b")
    record = await rig.broker.attach(text.generation_id, caller=CALLER, gateway_id="gateway-b")
    assert (record.state, record.num_tokens, record.chain, record.attempt) == (State.RUNNING, 2, text.chains[2], 1)
    assert (record.job, record.window_ms, record.reason) == (make_job(text.generation_id), 30_000, None)
    await rig.step(text.row(taken.lease, 2, 3))
    [row] = await rig.inbox("gateway-b")
    assert row.generation_id == text.generation_id
    assert row.entry == (await rig.broker.read_log(text.generation_id))[-1]


async def test_attaching_twice_is_attaching_once(rig: Rig) -> None:
    """A retry changes nothing."""
    submitted = await rig.submit()
    await rig.broker.attach(submitted.generation_id, caller=CALLER, gateway_id="gateway-b")
    before = await rig.snapshot()
    await rig.broker.attach(submitted.generation_id, caller=CALLER, gateway_id="gateway-b")
    assert await rig.snapshot() == before


async def test_at_most_four_gateways_get_rows(rig: Rig) -> None:
    """Further ones read the log, and are told so; each takes the place of one that leaves."""
    generation_id = (await rig.submit()).generation_id
    for name in "bcdef":
        await rig.broker.gateway_beat(f"gateway-{name}")
    told = [await rig.broker.attach(generation_id, caller=CALLER, gateway_id=f"gateway-{name}") for name in "bcdef"]
    assert [record.gets_rows for record in told] == [True, True, True, False, False]
    assert await gateways(rig, generation_id) == ("abcd", "ef")
    await rig.broker.leave(generation_id, gateway_id="gateway-b")
    assert await gateways(rig, generation_id) == ("acde", "f")
    await rig.broker.leave(generation_id, gateway_id="gateway-f")
    assert await gateways(rig, generation_id) == ("acde", "")
    again = await rig.broker.attach(generation_id, caller=CALLER, gateway_id="gateway-e")
    assert again.gets_rows


async def test_a_dead_gateways_place_goes_to_one_that_polls(rig: Rig) -> None:
    """Which is why it attaches again now and then."""
    generation_id = (await rig.submit()).generation_id
    for name in "bcde":
        await rig.broker.gateway_beat(f"gateway-{name}")
        await rig.broker.attach(generation_id, caller=CALLER, gateway_id=f"gateway-{name}")
    assert await gateways(rig, generation_id) == ("abcd", "e")
    await rig.client.delete(keys.inbox("gateway-c"))
    record = await rig.broker.attach(generation_id, caller=CALLER, gateway_id="gateway-e")
    assert record.gets_rows
    assert await gateways(rig, generation_id) == ("abde", "")


async def test_a_gateway_that_polls_keeps_a_generation_alive(rig: Rig) -> None:
    """The four that got rows have left, there is no window, and still one reads."""
    generation_id = (await rig.submit()).generation_id
    for name in "bcde":
        await rig.broker.gateway_beat(f"gateway-{name}")
        await rig.broker.attach(generation_id, caller=CALLER, gateway_id=f"gateway-{name}")
    for name in "abcd":
        await rig.broker.leave(generation_id, gateway_id=f"gateway-{name}")
    assert await gateways(rig, generation_id) == ("e", "")
    assert (await rig.broker.record(generation_id, caller=CALLER)).state is State.QUEUED
    await rig.broker.leave(generation_id, gateway_id="gateway-e")
    assert (await rig.broker.record(generation_id, caller=CALLER)).state is State.FINISHED


async def gateways(rig: Rig, generation_id: str) -> tuple[str, str]:
    """The last letters of those that get rows, and of those that poll."""
    fields = await rig.fields(generation_id)
    letters = [
        "".join(name[-1] for name in fields.get(which, "").split(",") if name) for which in ("readers", "pollers")
    ]
    return letters[0], letters[1]


async def test_nobody_attaches_to_what_is_not_theirs(rig: Rig) -> None:
    """Another caller's generation, and one that does not exist, look the same; nothing changes."""
    submitted = await rig.submit()
    before = await rig.snapshot()
    for generation_id, caller in ((submitted.generation_id, "caller-b"), (keys.new_generation_id(), CALLER)):
        with pytest.raises(UnknownGeneration):
            await rig.broker.attach(generation_id, caller=caller, gateway_id="gateway-b")
        with pytest.raises(UnknownGeneration):
            await rig.broker.record(generation_id, caller=caller)
    assert await rig.snapshot() == before


async def test_a_look_at_the_record_registers_nobody(rig: Rig) -> None:
    """Nor does it stop the clock of the resume window."""
    submitted = await rig.submit(window_ms=30_000)
    await rig.broker.leave(submitted.generation_id, gateway_id=GATEWAY)
    before = await rig.snapshot()
    assert (await rig.broker.record(submitted.generation_id, caller=CALLER)).state is State.QUEUED
    assert await rig.snapshot() == before


async def test_a_finished_generation_can_be_read(rig: Rig) -> None:
    """Its log stays for a while; attaching adds no reader."""
    taken, text = await rig.start()
    await rig.step(text.last_row(taken.lease, 0, 1))
    before = await rig.snapshot()
    record = await rig.broker.attach(text.generation_id, caller=CALLER, gateway_id="gateway-b")
    assert (record.state, record.num_tokens) == (State.FINISHED, 1)
    assert await rig.snapshot() == before


async def test_the_log_is_read_from_every_position(rig: Rig) -> None:
    """Whole entries that hold a token at or after it, the marks there, and the end; never a token before twice."""
    taken, text = await rig.start()
    await rig.step(text.row(taken.lease, 0, 3))
    await rig.step(text.row(taken.lease, 3, 4))
    await rig.kill()
    [entry] = await rig.adopt()
    again = await rig.take(entry, "worker-b")
    await rig.step(text.row(again.lease, 4, 6))
    await rig.step(text.last_row(again.lease, 6, 6))
    whole = await rig.broker.read_log(text.generation_id)
    kinds = [(type(each).__name__, each.end if isinstance(each, TokenRow) else 0) for each in whole]
    mark, row, end = "AttemptMark", "TokenRow", "Ending"
    assert kinds == [(mark, 0), (row, 3), (row, 4), (mark, 0), (row, 6), (end, 0)]
    assert whole[3] == AttemptMark(4, 2)
    for position, skipped in [(0, 0), (1, 1), (2, 1), (3, 2), (4, 3), (5, 4), (6, 5), (7, 5), (99, 5)]:
        assert await rig.broker.read_log(text.generation_id, position) == whole[skipped:]
        assert await by_the_page(rig, text.generation_id, LogPlace(position, f"{position}-0", 2)) == whole[skipped:]
    assert await rig.broker.read_log(keys.new_generation_id()) == []
    assert await rig.broker.read_log_page(keys.new_generation_id(), LogPlace.at(0)) == LogPage([], None)


async def test_a_page_of_a_log_is_bounded_by_bytes(rig: Rig) -> None:
    """About: large entries come by few, small ones by many."""
    for size in (20, 40_000):
        taken, text = await rig.start()
        body = bytes(size)
        for position in range(60):
            await rig.step(dataclasses.replace(text.row(taken.lease, position, position + 1), body=body))
        sizes: list[int] = []
        assert await by_the_page(rig, text.generation_id, LogPlace.at(0), sizes) == await rig.broker.read_log(
            text.generation_id
        )
        assert sizes == [16, 45] if size == 20 else max(sizes[1:]) * size <= PAGE_BYTES


async def by_the_page(rig: Rig, generation_id: str, place: LogPlace, sizes: list[int] | None = None) -> list[LogEntry]:
    """All pages from this place on, and how many entries each had."""
    entries: list[LogEntry] = []
    following: LogPlace | None = place
    while following is not None:
        page = await rig.broker.read_log_page(generation_id, following)
        entries += page.entries
        following = page.goes_on
        if sizes is not None:
            sizes.append(len(page.entries))
    return entries


async def test_standings_of_many_at_once(rig: Rig) -> None:
    """In order; None for a record that is gone."""
    taken, text = await rig.start()
    await rig.step(text.row(taken.lease, 0, 2))
    queued = await rig.submit()
    ids = [queued.generation_id, keys.new_generation_id(), text.generation_id]
    first, gone, last = await rig.broker.standings(ids)
    assert gone is None
    assert first is not None
    assert last is not None
    assert (first.state, first.num_tokens, first.attempt) == (State.QUEUED, 0, 0)
    assert (last.state, last.num_tokens, last.chain) == (State.RUNNING, 2, text.chains[2])
    assert await rig.broker.standings([]) == []


async def test_the_inbox_is_read_on_from_an_id(rig: Rig) -> None:
    """Each row once; a read that finds nothing in time keeps the id."""
    taken, text = await rig.start()
    last_id, rows = await rig.broker.read_inbox(GATEWAY, "0", block_ms=1)
    assert [row.entry for row in rows] == [AttemptMark(0, 1)]
    assert await rig.broker.read_inbox(GATEWAY, last_id, block_ms=1) == (last_id, [])
    await rig.step(text.row(taken.lease, 0, 2))
    await rig.step(text.last_row(taken.lease, 2, 3))
    _, rows = await rig.broker.read_inbox(GATEWAY, last_id, block_ms=1)
    assert [row.entry for row in rows] == (await rig.broker.read_log(text.generation_id))[1:]


async def test_a_trimmed_inbox_leaves_a_gap_that_shows(rig: Rig) -> None:
    """The next row begins beyond what the reader has, and the log fills it."""
    taken, text = await rig.start()
    await rig.step(text.row(taken.lease, 0, 2))
    await rig.client.xtrim(keys.inbox(GATEWAY), maxlen=0, approximate=False)
    assert await rig.inbox() == []
    await rig.step(text.row(taken.lease, 2, 3))
    [row] = await rig.inbox()
    assert isinstance(row.entry, TokenRow)
    assert (row.entry.t0, row.entry.chain0) == (2, text.chains[2])
    assert await rig.token_ids(text.generation_id) == [token.token_id for token in text.tokens]


async def test_an_inbox_without_gateway_is_never_made(rig: Rig) -> None:
    """Rows for a gateway that is gone go nowhere; the log has them."""
    await rig.broker.gateway_gone(GATEWAY)
    taken, text = await rig.start()
    await rig.step(text.last_row(taken.lease, 0, 2))
    assert not await rig.client.exists(keys.inbox(GATEWAY))
    assert len(await rig.token_ids(text.generation_id)) == 2


async def test_a_beat_says_which_inbox_it_keeps(rig: Rig) -> None:
    """Another one means that rows were lost; an inbox that is only empty is the same. A repetition says the same."""
    first = await rig.broker.gateway_beat(GATEWAY)
    await rig.client.xtrim(keys.inbox(GATEWAY), maxlen=0, approximate=False)
    assert await rig.broker.gateway_beat(GATEWAY) == first
    await rig.client.delete(keys.inbox(GATEWAY))
    second = await rig.broker.gateway_beat(GATEWAY)
    assert second == await rig.broker.gateway_beat(GATEWAY, {"state": "serving"}) != first
    await rig.client.delete(keys.inbox(GATEWAY), keys.gateway(GATEWAY))
    third = await rig.broker.gateway_beat(GATEWAY)
    await rig.client.delete(keys.gateway(GATEWAY))
    assert len({first, second, third, await rig.broker.gateway_beat(GATEWAY)}) == 4
    assert await rig.inbox() == []
    assert 25_000 < await rig.client.pttl(keys.inbox(GATEWAY)) <= 30_000


async def test_rows_do_not_keep_an_inbox(rig: Rig) -> None:
    """Only its gateway's beat does: else a dead gateway's inbox would live as long as its generations."""
    await rig.client.pexpire(keys.inbox(GATEWAY), 5000)
    taken, text = await rig.start()
    await rig.step(text.row(taken.lease, 0, 1))
    assert await rig.client.pttl(keys.inbox(GATEWAY)) <= 5000


async def test_an_inbox_is_bounded_by_bytes(rig: Rig) -> None:
    """A reader that does not read costs about 32 MiB at most, and loses hints, not tokens."""
    taken, text = await rig.start()
    num_rows, body = 600, bytes(65_000)
    for position in range(num_rows):
        await rig.step(dataclasses.replace(text.row(taken.lease, position, position + 1), body=body))
    assert await rig.client.xlen(keys.inbox(GATEWAY)) * len(body) < 34 * 2**20
    assert len(await rig.broker.read_log(text.generation_id)) == 1 + num_rows


async def test_the_ends_of_two_generations_of_one_step_are_both_told(rig: Rig) -> None:
    """One inbox entry may carry many rows."""
    started = [await rig.start() for _ in range(2)]
    await rig.broker.step([text.last_row(taken.lease, 0, 1) for taken, text in started])
    endings = {row.generation_id for row in await rig.inbox() if isinstance(row.entry, Ending)}
    assert endings == {text.generation_id for _, text in started}
