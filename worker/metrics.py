"""What the engine process counts: steps, and what becomes of attempts. Its supervisor tells the rest.

An observation is made for a step or an attempt, never for a token.
"""

import time

from telemetry import names
from telemetry.metrics import counter, histogram, observe
from worker.attempt import Attempt
from worker.engine.occupancy import Occupancy
from worker.engine.sequence import GenerationRequest, StepEvent, TokenEvent
from worker.engine_thread import SteppingEngine
from worker.holdings import Parting
from worker.progress import Progress

_queue_duration = histogram(names.QUEUE_DURATION)
_step_duration = histogram(names.STEP_DURATION)
_batch_size = histogram(names.BATCH_SIZE)
_redeliveries = counter(names.REDELIVERIES)
_lease_losses = counter(names.LEASE_LOSSES)
_poison = counter(names.POISON)


def record_take(attempt: Attempt) -> None:
    """An attempt begins. How long the job waited counts once, at its first."""
    taken = attempt.taken
    labels = {names.ATTR_REQUEST_MODEL: taken.job.model}
    if taken.attempt > 1:
        _redeliveries.add(1, labels)
    else:
        waited_s = max(0, taken.now_ms - taken.accepted_ms) / 1000
        _queue_duration.record(waited_s, {**labels, names.ATTR_PRIORITY: taken.job.job_class})


def record_parting(attempt: Attempt, parting: Parting) -> None:
    """An attempt is held no more."""
    if parting is Parting.LEASE_LOST:
        _lease_losses.add(1, {names.ATTR_REQUEST_MODEL: attempt.taken.job.model})


def count_poison(model: str) -> None:
    """A job was set aside."""
    _poison.add(1, {names.ATTR_REQUEST_MODEL: model})


class StepMeter:
    """An engine whose steps are measured: what the supervisor tells goes into its page, the rest to instruments.

    Implements worker.engine_thread.SteppingEngine; like the engine, it belongs to one thread.
    """

    def __init__(self, engine: SteppingEngine, model: str, progress: Progress) -> None:
        self._engine = engine
        self._progress = progress
        self._labels = {names.ATTR_REQUEST_MODEL: model}
        self._num_preemptions = 0
        for count in (_redeliveries, _lease_losses, _poison):
            count.add(0, self._labels)
        observe(names.PREEMPTIONS, lambda: [(self._num_preemptions, self._labels)])
        self._note(engine.occupancy)

    def add(self, request: GenerationRequest) -> None:
        """As the engine does."""
        self._engine.add(request)
        self._progress.num_attempts += 1
        self._progress.num_prompt_tokens += len(request.prompt_ids)

    def cancel(self, generation_id: str) -> None:
        """As the engine does."""
        self._engine.cancel(generation_id)

    def drop(self, generation_id: str) -> None:
        """As the engine does."""
        self._engine.drop(generation_id)
        self._note(self._engine.occupancy)

    def hold(self, generation_id: str, held: bool) -> None:
        """As the engine does."""
        self._engine.hold(generation_id, held)

    def check(self) -> None:
        """As the engine does."""
        self._engine.check()

    def probe(self) -> None:
        """As the engine does."""
        self._engine.probe()

    @property
    def has_work(self) -> bool:
        """As the engine does."""
        return self._engine.has_work

    @property
    def next_deadline_s(self) -> float | None:
        """As the engine does."""
        return self._engine.next_deadline_s

    @property
    def occupancy(self) -> Occupancy:
        """As the engine does."""
        return self._engine.occupancy

    def step(self) -> list[StepEvent]:
        """As the engine does."""
        started_s = time.perf_counter()
        events = self._engine.step()
        took_s = time.perf_counter() - started_s
        occupancy = self._engine.occupancy
        if occupancy.num_scheduled:  # else the step only closed what had ended
            _step_duration.record(took_s, self._labels)
            _batch_size.record(occupancy.num_scheduled, self._labels)
        self._progress.num_output_tokens += sum(type(event) is TokenEvent for event in events)
        self._note(occupancy)
        return events

    def _note(self, occupancy: Occupancy) -> None:
        progress = self._progress
        progress.num_sequences = occupancy.num_running
        progress.kv_blocks_used, progress.kv_blocks = occupancy.kv_blocks_used, occupancy.kv_blocks
        self._num_preemptions = occupancy.num_preemptions
