"""A child process that ends with its parent: how supervisors start processes, and what such a process does first.

Linux only: the kernel sends the signal, so no parent, however it dies, leaves a child behind.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None, use_errno=True)

Sink = int | IO[bytes] | None


def die_with_parent(parent_pid: int | None = None) -> None:
    """Let the kernel kill this process (SIGKILL) when the thread that started it ends.

    Args:
        parent_pid: who should be the parent; if it died before this call, the process exits now with status 1.

    Raises OSError if the kernel refuses. The setting outlives exec, but is not handed on to children.
    """
    if _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if parent_pid is not None and os.getppid() != parent_pid:
        os._exit(1)


def spawn(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    stdout: Sink = None,
    stderr: Sink = None,
) -> "subprocess.Popen[bytes]":
    """Start `command` as a child that dies with this process.

    It gets a process group of its own, so that a Ctrl-C at the terminal reaches only the parent, which then stops
    its children in order. Call it on a thread that lives as long as the process: the kernel watches that thread.

    The command is exec'd by a bare interpreter that asks for the signal first; a `preexec_fn` could deadlock in a
    process that has threads.

    Args:
        command: program and arguments; the program is looked up in PATH.
        env: the child's whole environment; None hands on this process' own.
        pass_fds: file descriptors that stay open under the same number.
    """
    return subprocess.Popen(bound(command), env=env, pass_fds=pass_fds, stdout=stdout, stderr=stderr, process_group=0)


def bound(command: Sequence[str]) -> list[str]:
    """The command that runs `command` as a child that dies with this process, for another way to start it."""
    return [sys.executable, "-SEsP", os.path.abspath(__file__), str(os.getpid()), *command]


def _launch(parent_pid: str, *command: str) -> None:
    die_with_parent(int(parent_pid))
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise SystemExit(f"cannot run {command[0]}: {error.strerror}") from None


if __name__ == "__main__":
    _launch(*sys.argv[1:])
