"""How fast the herd works off its queues, where in them a job stands, and how long it will wait."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping

from contract import keys
from contract.broker import Broker, QueueDepth
from contract.errors import BrokerDown
from service.pace import Pace, Pushback

POLL_S = 1.0

_EMPTY = QueueDepth(0, 0, 0, 0)

Depths = Mapping[tuple[str, str], QueueDepth]  # by model and class


class Queues:
    """What this gateway knows of the jobs streams, from one look a second at all of them.

    Attributes:
        depths: as seen last; an outage leaves them.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.depths: Depths = {}
        self._seen_s = 0.0
        self._paces: defaultdict[str, Pace] = defaultdict(Pace)
        self._pushbacks: defaultdict[str, Pushback] = defaultdict(Pushback)

    async def watch(self, on_look: Callable[[], None]) -> None:
        """Look every POLL_S, for ever; `on_look` is called after each look."""
        while True:
            try:
                self.observe(await self._broker.queue_depths(await self._broker.models()), time.monotonic())
                on_look()
            except BrokerDown:
                pass  # told by service.models
            await asyncio.sleep(POLL_S)

    def observe(self, depths: Depths, now_s: float) -> None:
        """Take in one look, made at `now_s` of a monotonic clock.

        Deliveries count while jobs waited at both ends of the time between two looks: an idle queue drains no faster
        than jobs arrive.
        """
        for model in {model for model, _ in depths}:
            before, after = self._of(model, self.depths), self._of(model, depths)
            num_taken = sum(each.num_delivered for each in after) - sum(each.num_delivered for each in before)
            if not before or num_taken < 0:
                continue
            if all(any(each.num_waiting for each in at) for at in (before, after)):
                self._paces[model].note(num_taken, now_s - self._seen_s)
            else:
                self._paces[model].note_idle(now_s - self._seen_s)
        self.depths, self._seen_s = depths, now_s

    def num_ahead(self, model: str, job_class: str, num_own: int | None = None) -> int:
        """Jobs that go before one of this class: what others left behind, higher classes, and `num_own` of its own.

        Args:
            num_own: None for a job that would be queued now.
        """
        at = keys.CLASSES.index(job_class)
        ahead = sum(each.num_free for each in self._of(model, self.depths))
        ahead += sum(self._depth(model, higher).num_new for higher in keys.CLASSES[:at])
        return ahead + (self._depth(model, job_class).num_new if num_own is None else num_own)

    def num_own_ahead(self, model: str, job_class: str, place: int) -> int:
        """Those of its own class that go before a job with this place, as its submission told it."""
        return max(0, place - self._depth(model, job_class).num_delivered)

    def wait_s(self, model: str, num_ahead: int) -> float | None:
        """How long until a worker takes a job with so many before it; None while no drain was measured."""
        per_s = self._per_s(model)
        return None if per_s is None else (num_ahead + 1) / per_s

    def pushback_s(self, model: str) -> float:
        """When a caller whom this model's queue has no place for may come back."""
        return self._pushbacks[model].take(self._per_s(model), time.monotonic())

    def _per_s(self, model: str) -> float | None:
        return self._paces[model].per_s if model in self._paces else None

    def _depth(self, model: str, job_class: str) -> QueueDepth:
        return self.depths.get((model, job_class), _EMPTY)

    @staticmethod
    def _of(model: str, depths: Depths) -> list[QueueDepth]:
        return [depth for (name, _), depth in depths.items() if name == model]
