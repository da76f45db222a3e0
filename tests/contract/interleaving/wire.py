"""The wire between a simulated process and Redis, which sometimes loses a call or its reply."""

import random
from collections import Counter
from collections.abc import Coroutine
from typing import Any, TypeVar

from contract.errors import BrokerDown

Answer = TypeVar("Answer")

LOSE_CALL = 0.03
LOSE_REPLY = 0.05


class Violation(AssertionError):
    """A rule of the protocol did not hold."""


class Wire:
    """Passes calls on, one at a time, until chaos strikes.

    Attributes:
        chaos: whether calls and replies may be lost, and processes may die.
        counts: what happened, by name.
    """

    def __init__(self, rnd: random.Random) -> None:
        self.rnd = rnd
        self.chaos = True
        self.counts: Counter[str] = Counter()

    def happens(self, probability: float) -> bool:
        """Whether this piece of bad luck strikes now."""
        return self.chaos and self.rnd.random() < probability

    async def call(self, call: Coroutine[Any, Any, Answer]) -> Answer:
        """The answer of one broker call. Raises BrokerDown if the call, or its reply, is lost."""
        self.counts["calls"] += 1
        if self.happens(LOSE_CALL):
            call.close()
            self.counts["lost calls"] += 1
            raise BrokerDown
        answer = await call
        if self.happens(LOSE_REPLY):
            self.counts["lost replies"] += 1
            raise BrokerDown
        return answer
