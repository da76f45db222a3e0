"""How fast something goes, measured only while it has something to do; and when to come back for a place in it."""

HALF_LIFE_S = 15.0  # an observation counts half after so much more observed time
IDLE_HALF_LIFE_S = 60.0  # and after so much time in which there was nothing to observe
MIN_OBSERVED_S = 0.1  # what counts for less is forgotten
MAX_PUSHBACK_S = 30.0
MIN_PUSHBACK_S = 0.05
UNMEASURED_PUSHBACK_S = 1.0


class Pace:
    """Events a second, recent ones counting more."""

    def __init__(self) -> None:
        self._num_events = 0.0
        self._observed_s = 0.0

    def note(self, num_events: int, over_s: float) -> None:
        """So many were seen in a time in which there was something to do all along."""
        kept = 0.5 ** (over_s / HALF_LIFE_S)
        self._num_events = self._num_events * kept + num_events
        self._observed_s = self._observed_s * kept + over_s

    def note_idle(self, for_s: float) -> None:
        """There was nothing to do for so long: what is known grows old."""
        kept = 0.5 ** (for_s / IDLE_HALF_LIFE_S)
        self._num_events *= kept
        self._observed_s *= kept

    @property
    def per_s(self) -> float | None:
        """None while nothing has been measured, and when that was long ago."""
        if not self._num_events or self._observed_s < MIN_OBSERVED_S:
            return None
        return self._num_events / self._observed_s


class Pushback:
    """Tells refused callers when to come back: one for each place that becomes free, so that they do not all meet."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def take(self, per_s: float | None, now_s: float) -> float:
        """Seconds until the next place that nobody was sent to yet, when `per_s` become free in a second."""
        if per_s is None:
            return UNMEASURED_PUSHBACK_S
        self._next_s = min(max(self._next_s, now_s) + 1 / per_s, now_s + MAX_PUSHBACK_S)
        return max(MIN_PUSHBACK_S, self._next_s - now_s)
