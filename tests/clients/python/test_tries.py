"""When and where to try again, on a clock of the test's."""

import grpc
import pytest

from llamaherd.client.errors import (
    ConnectionBroken,
    DeadlineExceeded,
    Facts,
    InvalidRequest,
    Overloaded,
    QuotaExceeded,
    Unavailable,
)
from llamaherd.client.tries import AVOID_S, LONGEST_WAIT_S, Targets, Tries

BROKEN = ConnectionBroken("gone", grpc.StatusCode.UNAVAILABLE)


class Clock:
    """Seconds that pass when told to."""

    now_s = 100.0

    def __call__(self) -> float:
        """The time."""
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """Stands still."""
    return Clock()


def tries(clock: Clock, num_targets: int = 1, timeout_s: float | None = None, patience_s: float = 60.0) -> Tries:
    """Of a call that begins now."""
    return Tries(Targets(num_targets, clock), timeout_s, patience_s, clock)


def test_waits_begin_at_50_ms_and_double_with_jitter(clock: Clock) -> None:
    """Each between half and all of 50, 100, 200 ... ms, up to a bound."""
    at = tries(clock)
    for n in range(10):
        full_s = min(0.05 * 2**n, LONGEST_WAIT_S)
        assert full_s / 2 <= at.failed(BROKEN) <= full_s


def test_progress_starts_over(clock: Clock) -> None:
    """A stream that came further has had no failures in a row."""
    at = tries(clock)
    for _ in range(8):
        at.failed(BROKEN)
    at.progressed()
    assert at.failed(BROKEN) <= 0.05


def test_another_gateway_first(clock: Clock) -> None:
    """All of them before one that has just failed."""
    at = tries(clock, num_targets=3)
    seen = []
    for _ in range(3):
        seen.append(at.next_target())
        at.failed(BROKEN)
    assert sorted(seen) == [0, 1, 2]
    assert at.next_target() == seen[0], "the one that failed longest ago"


def test_calls_take_turns_and_go_around_the_broken(clock: Clock) -> None:
    """New calls too, for a while."""
    targets = Targets(3, clock)
    first = [targets.pick(None) for _ in range(3)]
    assert sorted(first) == [0, 1, 2]
    targets.failed(1)
    assert 1 not in [targets.pick(None) for _ in range(6)]
    clock.now_s += AVOID_S + 1
    assert 1 in [targets.pick(None) for _ in range(3)]


def test_the_services_delay_is_a_lower_bound(clock: Clock) -> None:
    """RetryInfo."""
    assert tries(clock).failed(Overloaded("full", grpc.StatusCode.UNAVAILABLE, Facts(retry_after_s=7.0))) == 7.0


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("no", grpc.StatusCode.INVALID_ARGUMENT),
        QuotaExceeded("no", grpc.StatusCode.RESOURCE_EXHAUSTED, Facts(retry_after_s=1.0)),
        DeadlineExceeded("no", grpc.StatusCode.DEADLINE_EXCEEDED),
        Unavailable("no", grpc.StatusCode.UNAVAILABLE, Facts(forbids_retry=True)),
    ],
)
def test_the_rest_is_the_callers(clock: Clock, error: Exception) -> None:
    """A quota is waited for by whom it belongs to."""
    with pytest.raises(type(error)):
        tries(clock).failed(error)  # type: ignore[arg-type]  # a list of several kinds


def test_a_wait_beyond_the_deadline_is_not_begun(clock: Clock) -> None:
    """The cause is raised instead of a deadline that says nothing."""
    slow = Overloaded("full", grpc.StatusCode.UNAVAILABLE, Facts(retry_after_s=7.0))
    with pytest.raises(Overloaded):
        tries(clock, timeout_s=5.0).failed(slow)


def test_the_deadline_counts_from_the_first_attempt(clock: Clock) -> None:
    """What is left shrinks; then there is no attempt."""
    at = tries(clock, timeout_s=5.0)
    clock.now_s += 3
    assert at.remaining_s() == 2.0
    clock.now_s += 2
    with pytest.raises(DeadlineExceeded):
        at.remaining_s()


def test_a_connection_that_ends_with_the_deadline_is_the_deadline(clock: Clock) -> None:
    """A gateway that notices it first just ends the call; what the service has a word for is told all the same."""
    at = tries(clock, timeout_s=5.0)
    clock.now_s += 5
    with pytest.raises(DeadlineExceeded):
        at.failed(BROKEN)
    with pytest.raises(Overloaded):
        at.failed(Overloaded("full", grpc.StatusCode.UNAVAILABLE, Facts(reason="OVERLOADED")))


def test_patience_counts_from_the_first_failure(clock: Clock) -> None:
    """A long stream may break many times, and wait long in a queue; one that never comes may not."""
    at = tries(clock, patience_s=10.0)
    clock.now_s += 100
    at.failed(BROKEN)
    for _ in range(3):
        at.next_target()
        clock.now_s += 3
        at.failed(BROKEN)
    at.next_target()
    clock.now_s += 2
    with pytest.raises(ConnectionBroken):
        at.failed(BROKEN)


def test_an_attempt_that_stood_renews_the_patience(clock: Clock) -> None:
    """A stream that was silent for a minute and then broke was no failed attempt of a minute."""
    at = tries(clock, patience_s=10.0)
    for _ in range(10):
        at.next_target()
        clock.now_s += 60
        at.failed(BROKEN)
    at.progressed()
    at.failed(BROKEN)
