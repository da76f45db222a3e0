"""Fixtures that several test folders share: a herd with the demo model, started once."""

from collections.abc import Iterator

import hypothesis
import pytest

from tests.herd_process import HerdProcess
from tests.herd_process import herd_up as start_herd

hypothesis.settings.register_profile("same-every-time", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("same-every-time")


@pytest.fixture(scope="session")
def herd_up() -> Iterator[HerdProcess]:
    """A herd of one gateway and one worker that serves the demo model on the CPU."""
    with start_herd("--device", "cpu") as herd:
        yield herd
