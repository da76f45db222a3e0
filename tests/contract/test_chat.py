"""Conversations: one open turn at a time, a fence per connection, ends that count once, bounds, and a lifetime."""

import pytest

from contract import keys
from contract.chat import MAX_HISTORY_BYTES, MAX_TURNS, Begun, ChatStore, Handle, OpenTurn, Turn
from tests.contract.rig import CALLER, Rig

GENERATION = "0." + "a" * 32


@pytest.fixture
def store(rig: Rig) -> ChatStore:
    return rig.broker.chat


async def opened(store: ChatStore, epoch: str = "e1", ttl_ms: int = 60_000) -> Handle:
    handle = Handle.new()
    await store.open(handle, CALLER, b"setup", trace="00-trace", epoch=epoch, ttl_ms=ttl_ms)
    return handle


async def begin(
    store: ChatStore, handle: Handle, turn: int, *, epoch: str = "e1", request_id: str = "", user: str = "hello"
) -> tuple[Begun, int]:
    opening = OpenTurn(turn, user, f"{GENERATION}{turn}", shown=None, num_dropped=0)
    return await store.begin(handle, opening, epoch=epoch, request_id=request_id)


async def test_a_conversation_of_two_turns(store: ChatStore) -> None:
    """What was said stands in order, and the next turn has the next number."""
    handle = await opened(store)
    for turn, (user, text) in enumerate([("My name is Ann.", "Hello, Ann!"), ("What is my name?", "Ann.")]):
        assert await begin(store, handle, turn, user=user) == (Begun.BEGUN, turn)
        assert await store.end(handle, turn, text)
    session = await store.join(handle, CALLER)
    assert session is not None
    assert (session.setup, session.trace) == (b"setup", "00-trace")
    assert session.turns == (Turn(0, "My name is Ann.", "Hello, Ann!"), Turn(1, "What is my name?", "Ann."))
    assert (session.next_turn, session.open) == (2, None)


async def test_an_open_turn_is_found_by_whoever_joins(store: ChatStore) -> None:
    """The generation is kept before anything is queued, so a gateway that takes over knows where to read."""
    handle = await opened(store)
    await begin(store, handle, 0, user="Count")
    session = await store.join(handle, CALLER, epoch="e2")
    assert session is not None
    assert session.open is not None
    assert (session.open.number, session.open.user) == (0, "Count")
    assert session.open.generation_id == f"{GENERATION}0"
    assert session.turns == ()


async def test_every_call_may_be_repeated(rig: Rig, store: ChatStore) -> None:
    """A reply can be lost: the same call again changes nothing and answers the same, but for an end."""
    handle = await opened(store)
    key = keys.chat(handle.session_id)
    await store.open(handle, CALLER, b"setup", trace="00-trace", epoch="e1", ttl_ms=60_000)
    for _ in range(2):
        assert await begin(store, handle, 0, request_id="r") == (Begun.BEGUN, 0)
        assert await store.interrupt(handle, CALLER, 3) == f"{GENERATION}0"
    before = await rig.client.hgetall(key)
    assert before[b"shown"] == b"3"
    assert [await store.end(handle, 0, "text"), await store.end(handle, 0, "other")] == [True, False]
    session = await store.join(handle, CALLER)
    assert session is not None
    assert session.turns == (Turn(0, "hello", "text"),)
    await store.drop(handle, CALLER)
    assert await store.drop(handle, CALLER) == ""
    assert not await rig.client.exists(key)


async def test_one_turn_at_a_time(store: ChatStore) -> None:
    """A second one is told which is open."""
    handle = await opened(store)
    await begin(store, handle, 0)
    assert await begin(store, handle, 1) == (Begun.OPEN, 0)


async def test_a_turn_is_idempotent_by_its_request_id(store: ChatStore) -> None:
    """Open or ended, the same request_id stands for the same turn."""
    handle = await opened(store)
    await begin(store, handle, 0, request_id="r0")
    assert await begin(store, handle, 1, request_id="r0") == (Begun.SAME, 0)
    await store.end(handle, 0, "text")
    assert await begin(store, handle, 1, request_id="r0") == (Begun.SAME, 0)
    assert await begin(store, handle, 1, request_id="r1") == (Begun.BEGUN, 1)


async def test_the_last_connection_to_join_goes_on(store: ChatStore) -> None:
    """An earlier one can begin nothing any more; looking in without an epoch fences nobody."""
    handle = await opened(store)
    await store.join(handle, CALLER)
    assert await begin(store, handle, 0) == (Begun.BEGUN, 0)
    await store.end(handle, 0, "text")
    await store.join(handle, CALLER, epoch="e2")
    assert (await begin(store, handle, 1))[0] is Begun.FENCED
    assert await begin(store, handle, 1, epoch="e2") == (Begun.BEGUN, 1)


async def test_a_stale_view_is_told_to_look_again(store: ChatStore) -> None:
    """The number of the turn must be the next one."""
    handle = await opened(store)
    assert await begin(store, handle, 3) == (Begun.MOVED, 0)


async def test_a_failed_turn_leaves_no_trace_in_the_history(store: ChatStore) -> None:
    """Its number is used up; what the user said then is forgotten, and its request_id may be used again."""
    handle = await opened(store)
    await begin(store, handle, 0, request_id="r")
    assert await store.end(handle, 0, None)
    assert await begin(store, handle, 1, request_id="r", user="again") == (Begun.BEGUN, 1)
    await store.end(handle, 1, "yes")
    session = await store.join(handle, CALLER)
    assert session is not None
    assert session.turns == (Turn(1, "again", "yes"),)


async def test_only_who_has_the_handle_and_opened_it(store: ChatStore) -> None:
    """Another secret or another caller finds nothing."""
    handle = await opened(store)
    other = Handle(handle.session_id, "0" * 32)
    assert await store.join(other, CALLER) is None
    assert await store.join(handle, "caller-b") is None
    assert await store.interrupt(other, CALLER, None) is None
    assert await store.drop(other, CALLER) == ""
    assert await store.join(handle, CALLER) is not None


async def test_an_interrupt_between_turns_is_nothing(store: ChatStore) -> None:
    """No generation to cancel."""
    handle = await opened(store)
    assert await store.interrupt(handle, CALLER, 5) == ""


async def test_an_interrupt_is_seen_by_who_is_about_to_queue_the_turn(store: ChatStore) -> None:
    """There may be no generation to cancel yet; the next turn is not interrupted by it."""
    handle = await opened(store)
    await begin(store, handle, 0)
    await store.interrupt(handle, CALLER, None)
    session = await store.join(handle, CALLER)
    assert session is not None
    assert session.open is not None
    assert (session.open.is_interrupted, session.open.shown) == (True, None)
    await store.end(handle, 0, "")
    await begin(store, handle, 1)
    session = await store.join(handle, CALLER)
    assert session is not None
    assert session.open is not None
    assert not session.open.is_interrupted


async def test_the_history_is_bounded(rig: Rig, store: ChatStore) -> None:
    """The oldest turns go, by bytes, and the hash with all its fields stays small."""
    handle = await opened(store)
    half = "x" * (MAX_HISTORY_BYTES // 2)
    for turn in range(4):
        await begin(store, handle, turn, request_id=f"r{turn}")
        await store.end(handle, turn, half)
    session = await store.join(handle, CALLER)
    assert session is not None
    assert [turn.number for turn in session.turns] == [3]
    assert (session.first_turn, session.next_turn) == (3, 4)
    assert int(await rig.client.hget(keys.chat(handle.session_id), "bytes")) <= MAX_HISTORY_BYTES
    assert await rig.client.hlen(keys.chat(handle.session_id)) == 20
    assert MAX_TURNS > 4


async def test_it_expires_without_turns(rig: Rig, store: ChatStore) -> None:
    """A turn renews the lifetime, a look does not; then it is as if it had never been."""
    handle = await opened(store, ttl_ms=3_600_000)
    key = keys.chat(handle.session_id)
    await rig.client.pexpire(key, 5000)
    await store.join(handle, CALLER, epoch="e1")
    assert await rig.client.pttl(key) <= 5000
    await begin(store, handle, 0)
    assert await rig.client.pttl(key) > 3_000_000
    await rig.client.delete(key)  # as the server does at the end of the lifetime
    assert await store.join(handle, CALLER) is None
    assert (await begin(store, handle, 1))[0] is Begun.GONE
    assert not await store.end(handle, 0, "text")


@pytest.mark.parametrize(
    "text", ["", "x", "a" * 32, f"{'a' * 32}.", f"{'a' * 32}.{'g' * 32}", f"{'A' * 32}.{'a' * 32}"]
)
def test_what_is_no_handle(text: str) -> None:
    """Keys are made of nothing but ids of the right form."""
    assert Handle.parse(text) is None
    whole = Handle.new()
    assert Handle.parse(str(whole)) == whole
