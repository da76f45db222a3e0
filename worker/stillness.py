"""How long a counter stands still, judged by the clock of the one who watches it."""

MAX_GAP_S = 0.6  # between two looks; after a longer one the watcher itself was away


class Stillness:
    """How long a value has stood still, as far as someone who looked often enough can say."""

    def __init__(self, max_gap_s: float = MAX_GAP_S) -> None:
        self._max_gap_s = max_gap_s
        self._value: object = None
        self.since_s = 0.0  # when the value was first seen
        self._last_look_s = float("-inf")
        self.num_looks = 0

    def look(self, value: object, now_s: float) -> float:
        """Note the value; return for how many seconds it has been the same."""
        if value != self._value or now_s - self._last_look_s > self._max_gap_s:
            self._value, self.since_s, self.num_looks = value, now_s, 0
        self.num_looks += 1
        self._last_look_s = now_s
        return now_s - self.since_s
