"""Nothing of a herd outlives the command that started it."""

import os
import signal

from tests.herd_process import herd_up, is_alive
from tests.until import until


async def test_no_child_outlives_a_killed_herd() -> None:
    """SIGKILL of `herd up` ends the valkey, the gateway, the workers and their engines."""
    with herd_up("--device", "cpu", "--workers", "2") as herd:
        pids = herd.all_pids()
        assert len(pids) == 1 + 1 + 1 + 2 * 3

        os.kill(herd.process.pid, signal.SIGKILL)

        await until(lambda: not any(is_alive(pid) for pid in pids), timeout_s=10)


def test_an_interrupt_ends_a_herd_in_order() -> None:
    """SIGINT: exit status 0, nothing left."""
    with herd_up("--device", "cpu") as herd:
        pids = herd.all_pids()

        herd.process.send_signal(signal.SIGINT)

        assert herd.process.wait(timeout=60) == 0
        assert not any(is_alive(pid) for pid in pids)
