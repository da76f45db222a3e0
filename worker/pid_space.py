"""Which processes this one can see: a death on the same machine is known at once, without waiting for a heartbeat."""

import os
import select
from functools import cache
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PID_NAMESPACE = "/proc/self/ns/pid"


@cache
def pid_space() -> str:
    """The same in two processes only if each knows the other by the same process id; '' if that cannot be told."""
    try:
        return f"{BOOT_ID.read_text().strip()}/{os.readlink(PID_NAMESPACE)}"
    except OSError:
        return ""


def open_process(space: str, pid: str) -> int | None:
    """A pidfd of this process, readable once it has ended; None if it is of another space, or cannot be watched.

    Raises ProcessLookupError if it is gone.
    """
    if not space or space != pid_space() or not pid.isdecimal():
        return None
    try:
        return os.pidfd_open(int(pid))
    except ProcessLookupError:
        raise
    except OSError:
        return None


def is_gone(space: str, pid: str) -> bool:
    """Whether this process surely runs no more, be it buried or not. One of another space may always be alive."""
    try:
        pidfd = open_process(space, pid)
    except ProcessLookupError:
        return True
    if pidfd is None:
        return False
    try:
        return bool(select.select([pidfd], [], [], 0)[0])
    finally:
        os.close(pidfd)
