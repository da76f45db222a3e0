"""What this worker holds: its attempts, the entries it is about to take, and how many more it may take."""

import asyncio
import enum
from collections.abc import Callable, Iterator

from contract.broker import Delivered
from worker.attempt import Attempt, Hold
from worker.engine_link import EngineLink
from worker.progress import Progress


class Parting(enum.StrEnum):
    """Why an attempt is held no more."""

    ENDED = "ended"  # its generation is finished
    LEASE_LOST = "lease lost"  # another worker has it, or nobody wants it any more
    HANDED_BACK = "handed back"  # this worker is going away


class Holdings:
    """The attempts in the engine or on their way into the log, at most one per generation.

    Invariant: an attempt is here, by lease and by generation, from its take until its end is in the log, its lease is
    lost, or it is handed back.

    Attributes:
        num_nudges: how often this worker was told to look at its flags; who was taking meanwhile was not looked at.
        runs_alone: the generation that has the engine to itself, from before its take until it has proved itself or is
            gone; '' if there is none. All others are held.
    """

    def __init__(
        self,
        num_slots: int,
        engine: EngineLink,
        progress: Progress,
        parted: Callable[[Attempt, Parting], None] = lambda _attempt, _parting: None,
    ) -> None:
        """Args: parted: told of every attempt that leaves."""
        self._num_slots = num_slots
        self._engine = engine
        self._progress = progress
        self._parted = parted
        self._attempts: dict[str, Attempt] = {}  # by lease
        self._by_generation: dict[str, Attempt] = {}
        self.taking: set[str] = set()  # jobs entries that were handed to us and are not attempts yet
        self.changed = asyncio.Event()  # something was removed; whoever waits clears it
        self.is_empty = asyncio.Event()
        self.is_empty.set()
        self.num_nudges = 0
        self.runs_alone = ""
        progress.num_slots = num_slots

    def __iter__(self) -> Iterator[Attempt]:
        return iter(tuple(self._attempts.values()))

    def __len__(self) -> int:
        return len(self._attempts)

    @property
    def num_free(self) -> int:
        """Slots that are free: every choice takes one. Below 0 if the last job had more choices than were left."""
        return self._num_slots - sum(each.job.num_choices for each in self._attempts.values())

    def by_lease(self, lease: str) -> Attempt | None:
        """The attempt of this lease, if it is still held."""
        return self._attempts.get(lease)

    def of_generation(self, generation_id: str) -> Attempt | None:
        """The attempt at this generation, if one is held."""
        return self._by_generation.get(generation_id)

    def knows(self, entry: Delivered) -> bool:
        """Whether the entry is being taken, or its attempt is held."""
        attempt = self._by_generation.get(entry.generation_id)
        return entry.entry_id in self.taking or (attempt is not None and attempt.taken.entry == entry)

    def add(self, attempt: Attempt) -> None:
        """Hold the attempt."""
        assert self.of_generation(attempt.generation_id) is None, "a generation is held twice"
        self._attempts[attempt.lease] = self._by_generation[attempt.generation_id] = attempt
        self._count()

    def hold(self, attempt: Attempt, why: Hold, is_on: bool) -> None:
        """Let the engine schedule the attempt only while there is no reason not to."""
        if is_on:
            attempt.holds.add(why)
        else:
            attempt.holds.discard(why)
        self._engine.hold(attempt.lease, bool(attempt.holds))

    def begin_alone(self, generation_id: str) -> None:
        """Hold everything else, before the generation is taken. At most one at a time."""
        assert not self.runs_alone, "two generations run alone"
        if (earlier := self.of_generation(generation_id)) is not None:
            self.part(earlier, Parting.LEASE_LOST)
        self.runs_alone = generation_id
        for attempt in self:
            self.hold(attempt, Hold.ALONE, True)

    def end_alone(self, generation_id: str) -> None:
        """Let everything go on, if this is the generation that runs alone."""
        if self.runs_alone == generation_id:
            self.runs_alone = ""
            for attempt in self:
                self.hold(attempt, Hold.ALONE, False)
            self.changed.set()

    def part(self, attempt: Attempt, parting: Parting) -> None:
        """Hold it no more; the engine forgets it too. Does nothing if it is not held."""
        if self._attempts.pop(attempt.lease, None) is None:
            return
        del self._by_generation[attempt.generation_id]
        if parting is not Parting.ENDED or attempt.end is None:
            self._engine.drop(attempt.lease)
        self._count()
        self.changed.set()
        self.end_alone(attempt.generation_id)
        self._parted(attempt, parting)

    def _count(self) -> None:
        self._progress.num_running = len(self._attempts)
        if self._attempts:
            self.is_empty.clear()
        else:
            self.is_empty.set()
