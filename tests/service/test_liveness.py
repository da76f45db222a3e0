"""A worker lives while its counter moves on the observer's own clock."""

from contract.broker import WorkerBeat
from service.models import POLL_S, Liveness


def poll(liveness: Liveness, now_s: float, **beats: int) -> dict[str, int]:
    """One look at workers of model m, each with its counter."""
    liveness.observe([WorkerBeat(name, str(beat), {"model": "m"}) for name, beat in beats.items()], now_s)
    return liveness.live_models()


def test_a_worker_counts_once_it_was_seen_to_move() -> None:
    """The first look may find the key of one long dead."""
    liveness = Liveness(0.9, stale_after_s=10.0)
    assert poll(liveness, 0.0, a=5, b=9) == {}
    assert poll(liveness, 0.3, a=6, b=9) == {"m": 1}


def test_a_newcomer_counts_at_once() -> None:
    """It was not there before, so it has just begun."""
    liveness = Liveness(0.9, stale_after_s=10.0)
    poll(liveness, 0.0)
    assert poll(liveness, 0.3, a=1) == {"m": 1}


def test_a_counter_that_stands_still_is_a_death() -> None:
    """After 0.9 s and three polls; moving again is life again."""
    liveness = Liveness(0.9, stale_after_s=10.0)
    poll(liveness, 0.0, a=1)
    poll(liveness, 0.3, a=2)
    assert poll(liveness, 0.6, a=2) == {"m": 1}
    assert poll(liveness, 0.9, a=2) == {"m": 1}
    assert poll(liveness, 1.15, a=2) == {"m": 1}, "0.85 s"
    assert poll(liveness, 1.3, a=2) == {}
    assert poll(liveness, 1.6, a=3) == {"m": 1}


def test_our_own_pause_kills_nobody() -> None:
    """A late poll starts the count anew."""
    liveness = Liveness(0.9, stale_after_s=10.0)
    poll(liveness, 0.0, a=1)
    poll(liveness, 0.3, a=2)
    assert poll(liveness, 60.0, a=2) == {"m": 1}
    assert poll(liveness, 60.3, a=2) == {"m": 1}


def test_an_outage_kills_nobody() -> None:
    """A failed poll starts the count anew."""
    liveness = Liveness(0.9, stale_after_s=10.0)
    poll(liveness, 0.0, a=1)
    poll(liveness, 0.3, a=2)
    for n in range(2, 6):
        liveness.start_over()
        assert poll(liveness, n * POLL_S, a=2) == {"m": 1}


def test_only_ready_workers_serve() -> None:
    """One that loads or drains lives, but takes nothing."""
    liveness = Liveness(0.9, stale_after_s=10.0)
    liveness.observe([], 0.0)
    states = ("loading", "ready", "draining")
    liveness.observe([WorkerBeat(state, "1", {"model": state, "state": state}) for state in states], 0.3)
    assert liveness.live_models() == {"ready": 1}


def test_a_device_that_has_not_computed_lately_is_not_healthy() -> None:
    """The worker lives and takes jobs all the same: it may be in a long step, and nobody else would take them."""
    liveness = Liveness(0.9, stale_after_s=10.0)
    liveness.observe([], 0.0)
    ages = {"fresh": "9999", "old": "10001", "not yet": "", "broken": "x"}
    beats = [WorkerBeat(name, "1", {"model": name, "device_age_ms": age}) for name, age in ages.items()]
    liveness.observe([*beats, WorkerBeat("earlier version", "1", {"model": "says nothing"})], 0.3)
    assert liveness.live_models().keys() == {*ages, "says nothing"}
    assert liveness.healthy_models() == {"fresh", "says nothing"}


def test_one_healthy_worker_makes_a_model_healthy() -> None:
    """Until it dies."""
    liveness = Liveness(0.9, stale_after_s=10.0)
    for n in range(6):
        ages = {"a": "20000", "b": "10"}
        beats = [
            WorkerBeat(name, str(n if name == "a" else min(n, 1)), {"model": "m", "device_age_ms": age})
            for name, age in ages.items()
        ]
        liveness.observe(beats, n * POLL_S)
        if n == 1:
            assert liveness.healthy_models() == {"m"}
    assert liveness.live_models() == {"m": 1}
    assert liveness.healthy_models() == frozenset()


def test_a_model_has_the_level_of_its_earliest_worker() -> None:
    """Any of them may get any job of the model; one that tells no level is of the first version."""
    liveness = Liveness(0.9, stale_after_s=10.0)
    levels = {"a": ("m", "2"), "b": ("m", "1"), "c": ("n", "1"), "d": ("n", None), "e": ("o", "what?")}
    beats = [
        WorkerBeat(name, "1", {"model": model} if level is None else {"model": model, "job_level": level})
        for name, (model, level) in levels.items()
    ]
    loading = WorkerBeat("f", "1", {"model": "m", "job_level": "0", "state": "loading"})
    liveness.observe([], 0.0)
    liveness.observe([*beats, loading], 0.3)
    assert liveness.job_levels() == {"m": 1, "n": 0, "o": 0}
