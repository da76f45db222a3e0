"""What a reading makes of responses that come twice, joined, late or wrong. No I/O."""

import pytest
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st

from llamaherd.client.errors import ConnectionBroken, DataLoss, Facts, UnknownGeneration
from llamaherd.client.resume import Reading, Response
from llamaherd.v1 import common_pb2, generation_pb2
from tests.clients.python.scripted_gateway import GENERATION_ID, from_position, tell

TEXTS = ("first", "2nd", "the third")


def reading() -> Reading:
    """Of a generation that it starts."""
    return Reading(generation_pb2.GenerateRequest(request_id="r"))


def take_all(reading: Reading, messages: list[Response]) -> list[Response]:
    """What is given out of these."""
    return [fresh for message in messages for fresh in reading.take(message)]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30))))
def test_any_overlap_is_given_out_once(stretches: list[tuple[int, int]]) -> None:
    """Calls that begin anywhere before the end of what was read, and break anywhere, add up to the stream."""
    whole = tell(*TEXTS)
    at, got = reading(), list[Response]()
    for back, num_messages in stretches:
        got += take_all(at, from_position(whole, max(0, at.position - back))[:num_messages])
    got += take_all(at, from_position(whole, at.position))

    assert got == whole
    assert at.is_complete


@given(st.lists(st.integers(1, 4)))
def test_joined_tokens_are_taken_one_by_one(sizes: list[int]) -> None:
    """Responses joined by concatenation, across what was read already."""
    whole = tell("abcdefgh")
    tokens = [token for message in whole for token in message.tokens]
    at, ids = reading(), list[int]()
    start = 0
    for size in [*sizes, len(tokens)]:
        joined = Response(tokens=tokens[max(0, start - 1) : start + size])
        ids += [token.id for fresh in at.take(joined) for token in fresh.tokens]
        start = at.position

    assert ids == [token.id for token in tokens]


def test_a_gap_is_data_loss() -> None:
    """A token that nobody gave is not passed over."""
    whole = tell("abc")
    with pytest.raises(DataLoss, match="token 1 came where 0 was due"):
        reading().take(whole[4])


def test_another_token_in_a_known_place_is_data_loss() -> None:
    """Even one that would be dropped is compared."""
    at = reading()
    take_all(at, tell("abc")[:5])
    with pytest.raises(DataLoss, match="is not the one"):
        at.take(tell("xbc")[3])


def test_a_token_that_does_not_continue_is_data_loss() -> None:
    """Its chain is computed, not believed."""
    at = reading()
    take_all(at, tell("abc")[:5])
    with pytest.raises(DataLoss, match="does not continue"):
        at.take(tell("xbc")[5])


def test_completion_short_of_tokens_is_data_loss() -> None:
    """`completed` says how many there were."""
    whole = tell("abc")
    with pytest.raises(DataLoss, match="2 of 3 tokens"):
        take_all(reading(), [*whole[:5], whole[-1]])


def test_another_generation_is_data_loss() -> None:
    """An attach that answers with another id."""
    at = reading()
    take_all(at, tell("abc")[:1])
    with pytest.raises(DataLoss, match="came back as"):
        at.take(Response(accepted=common_pb2.Accepted(generation_id="0.other")))


def test_without_a_chain_the_first_token_is_believed() -> None:
    """A reader that knows a position only; from there on it checks."""
    at = Reading(None, generation_id=GENERATION_ID, from_position=1)
    take_all(at, from_position(tell("abc"), 1)[:4])
    assert at.next_call()[1] == generation_pb2.AttachRequest(
        generation_id=GENERATION_ID, from_position=2, chain=tell("abc")[4].tokens[0].chain
    )
    with pytest.raises(DataLoss):
        at.take(tell("axc")[5])


def test_a_record_lost_before_the_first_token_is_started_again() -> None:
    """Nothing was shown yet, so nothing can fork."""
    at = reading()
    take_all(at, tell("abc")[:3])
    gone = UnknownGeneration("gone", code=StatusCode.NOT_FOUND, facts=Facts("UNKNOWN_GENERATION"))

    assert isinstance(at.failed(gone), ConnectionBroken)
    assert at.next_call()[1] == at.request
    assert len(take_all(at, tell("abc"))) == len(tell("abc")) - 1, "queued was told"


def test_a_record_lost_later_is_the_callers_to_know() -> None:
    """A second generation might say something else."""
    at = reading()
    take_all(at, tell("abc")[:4])
    gone = UnknownGeneration("gone", code=StatusCode.NOT_FOUND, facts=Facts("UNKNOWN_GENERATION"))

    assert at.failed(gone) is gone


def test_an_event_of_a_newer_service_is_passed_over() -> None:
    """Unknown fields only."""
    assert reading().take(Response.FromString(b"\xba\x3e\x00")) == []
