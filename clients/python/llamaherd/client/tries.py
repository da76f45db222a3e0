"""Whether, when and where to try a call again. No I/O and no clock of its own choosing: both shells ask it.

A retry goes to another gateway first; the wait starts at 50 ms, doubles, and is shortened by chance, so that clients
of a gateway that died do not return in step. What the service asks for (RetryInfo, grpc-retry-pushback-ms) goes first.
"""

import random
import time
from collections.abc import Callable

import grpc

from llamaherd.client.errors import BrokerDown, ConnectionBroken, DeadlineExceeded, Draining, HerdError, Unavailable

FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 2.0
AVOID_S = 5.0  # how long a gateway that failed is asked after the others
STOOD_S = 5.0  # an attempt that took so long had reached the service: its failure is the first of a series


class Targets:
    """The gateways of one client, shared by all its calls: these take turns, and go around those that just failed."""

    def __init__(self, num_targets: int, clock: Callable[[], float] = time.monotonic) -> None:
        assert num_targets > 0, "a client needs an address"
        self._clock = clock
        self._failed_s = [float("-inf")] * num_targets
        self._turn = random.randrange(num_targets)

    def pick(self, last: int | None) -> int:
        """The number of the gateway to ask next; another than `last`, which just failed, if there is one."""
        num_targets = len(self._failed_s)
        turns = [(self._turn + n) % num_targets for n in range(num_targets)]
        self._turn = (self._turn + 1) % num_targets
        bad_since_s = self._clock() - AVOID_S
        return min(turns, key=lambda target: (target == last, max(self._failed_s[target], bad_since_s)))

    def failed(self, target: int) -> None:
        """It broke or it drains: others are asked first for a while."""
        self._failed_s[target] = self._clock()


class Tries:
    """The attempts at one call, all under the same deadline.

    Args:
        timeout_s: from now to the deadline of the whole call, however many attempts it takes; None has none.
        patience_s: how long to go on trying while one attempt after the other fails and nothing new comes.
    """

    def __init__(
        self,
        targets: Targets,
        timeout_s: float | None,
        patience_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._targets = targets
        self._patience_s = patience_s
        self._clock = clock
        now_s = clock()
        self._deadline_s = None if timeout_s is None else now_s + timeout_s
        self._attempt_s = now_s  # when the one at hand began
        self._failing_since_s: float | None = None
        self._wait_s = FIRST_WAIT_S
        self._target: int | None = None
        self._has_failed = False
        self.is_out_of_time = False  # given up, since another attempt would begin after the deadline

    def next_target(self) -> int:
        """The number of the gateway to ask now."""
        self._target = self._targets.pick(self._target if self._has_failed else None)
        self._attempt_s = self._clock()
        return self._target

    def remaining_s(self) -> float | None:
        """What is left for the attempt about to begin. Raises DeadlineExceeded if nothing is."""
        if self._deadline_s is None:
            return None
        remaining_s = self._deadline_s - self._clock()
        if remaining_s <= 0:
            raise _deadline_exceeded()
        return remaining_s

    def progressed(self) -> None:
        """Something new came: the next failure is a first one."""
        self._failing_since_s = None
        self._wait_s = FIRST_WAIT_S

    def failed(self, error: HerdError) -> float:
        """Seconds to wait before the next attempt. Raises `error` if there is to be none."""
        if isinstance(error, ConnectionBroken | Draining | BrokerDown) and self._target is not None:
            self._targets.failed(self._target)
        self._has_failed = True
        if not isinstance(error, Unavailable) or error.forbids_retry:
            raise error from None
        now_s = self._clock()
        if self._left_s(now_s) <= 0 and not error.reason:  # a gateway noticed it first, and ended the call
            raise _deadline_exceeded() from None
        if self._failing_since_s is None or now_s - self._attempt_s >= STOOD_S:
            self._failing_since_s = now_s
        wait_s = max(self._wait_s * random.uniform(0.5, 1.0), error.retry_after_s or 0.0)
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
        self.is_out_of_time = wait_s > self._left_s(now_s)
        if self.is_out_of_time or wait_s > self._failing_since_s + self._patience_s - now_s:
            raise error from None
        return wait_s

    def _left_s(self, now_s: float) -> float:
        return float("inf") if self._deadline_s is None else self._deadline_s - now_s


def _deadline_exceeded() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline has passed", grpc.StatusCode.DEADLINE_EXCEEDED)
