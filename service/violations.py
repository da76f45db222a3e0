"""Collects what is wrong with a request, so that a caller learns everything at once."""

import math

from contract.errors import FieldViolation, InvalidRequest


class Violations:
    """The violations found so far. Paths are those of the request: `spec.sampling.temperature`."""

    def __init__(self) -> None:
        self._found: list[FieldViolation] = []

    def add(self, field: str, description: str) -> None:
        """One more."""
        self._found.append(FieldViolation(field, description))

    def take_from(self, error: InvalidRequest, prefix: str) -> None:
        """All that another check found, with its paths below `prefix`."""
        self._found += [FieldViolation(f"{prefix}{v.field}", v.description) for v in error.violations]

    def check_range(self, field: str, value: float, low: float, high: float, *, over_low: bool = False) -> bool:
        """Whether low <= value <= high (low < value with `over_low`); NaN never is. Adds a violation if not."""
        is_inside = (low < value if over_low else low <= value) and value <= high  # every comparison with NaN is false
        if not is_inside:
            shown = f"{value:g}" if math.isfinite(value) else str(value)
            bounds = f"over {low:g}, at most {high:g}" if over_low else f"{low:g} to {high:g}"
            self.add(field, f"is {shown}; the range is {bounds}")
        return is_inside

    def raise_if_any(self) -> None:
        """Raises InvalidRequest if anything was found."""
        if self._found:
            raise InvalidRequest(self._found)
