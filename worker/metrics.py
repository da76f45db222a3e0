"""What the serving process counts of attempts. Its supervisor tells the rest.

An observation is made for an attempt, never for a token.
"""

from telemetry import names
from telemetry.metrics import counter, histogram
from worker.attempt import Attempt
from worker.holdings import Parting

_queue_duration = histogram(names.QUEUE_DURATION)
_redeliveries = counter(names.REDELIVERIES)
_lease_losses = counter(names.LEASE_LOSSES)
_poison = counter(names.POISON)


def start_counts(model: str) -> None:
    """Show counters of which nothing has been counted yet."""
    for count in (_redeliveries, _lease_losses, _poison):
        count.add(0, {names.ATTR_REQUEST_MODEL: model})


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
