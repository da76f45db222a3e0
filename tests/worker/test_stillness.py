"""A counter is judged by the clock of the one who looks, and only by those who looked often enough."""

from worker.stillness import Stillness


def test_a_value_that_changes_is_never_still() -> None:
    """Each change starts the watch over."""
    stillness = Stillness(max_gap_s=0.6)
    assert [stillness.look(beat, beat / 4) for beat in range(10)] == [0.0] * 10


def test_a_value_that_stands_is_still_for_as_long_as_it_was_watched() -> None:
    """Four looks, 0.25 s apart, saw it for 0.75 s."""
    stillness = Stillness(max_gap_s=0.6)
    assert [stillness.look("7", 100 + look / 4) for look in range(4)] == [0.0, 0.25, 0.5, 0.75]
    assert stillness.num_looks == 4


def test_a_pause_of_the_watcher_starts_over() -> None:
    """Who was away for five seconds knows nothing of them."""
    stillness = Stillness(max_gap_s=0.6)
    stillness.look("7", 100.0)
    stillness.look("7", 100.5)
    assert stillness.look("7", 105.5) == 0.0
    assert stillness.num_looks == 1
    assert stillness.look("7", 106.0) == 0.5
