"""How fast something goes, measured only while it has something to do; and when to come back for a place in it."""

HALF_LIFE_S = 15.0  # an observation counts half after so much more observed time
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

    @property
    def per_s(self) -> float | None:
        """None while nothing has been measured."""
        return self._num_events / self._observed_s if self._num_events else None


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
