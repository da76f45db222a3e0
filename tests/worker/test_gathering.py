"""How often a worker writes to the log, and how it takes many jobs at once."""

import pytest

from worker.publish import gathering_s


@pytest.mark.parametrize(
    ("num_rows", "wait_s"), [(0, 0), (1, 0), (14, 0), (64, 0.00448), (128, 0.00896), (1024, 0.025)]
)
def test_a_few_sequences_are_never_kept_waiting(num_rows: int, wait_s: float) -> None:
    """Tokens of many gather, so that a row has several when steps are very short; never for long."""
    assert gathering_s(num_rows) == pytest.approx(wait_s)
