"""Which processes this one can see: a death on the same machine is known at once, without waiting for a heartbeat."""

import os
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


def is_gone(space: str, pid: str) -> bool:
    """Whether this process surely runs no more. One of another space may always be alive; so may a reused id."""
    if not space or space != pid_space() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # it is another user's
    return False
