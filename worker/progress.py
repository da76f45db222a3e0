"""Counters and two words in shared memory, from a pair of processes to their supervisor: no lock, no GIL, no message.

The engine process and what serves it write, each its own; the supervisor reads. Every counter is one aligned machine
word, written whole.
"""

import enum
import mmap
import os
import struct
from typing import Self

_WORD = struct.Struct("@q")
_SIZE = 4096
_TEXT_BYTES = 64


class WorkerState(enum.IntEnum):
    """What the two processes are doing; in the beat it is the lower-case name."""

    LOADING = 0
    READY = 1
    DRAINING = 2


class _Counter:
    """One word of the page."""

    def __init__(self, index: int) -> None:
        self._offset = index * _WORD.size

    def __get__(self, progress: "Progress", owner: type) -> int:
        value: int = _WORD.unpack_from(progress.page, self._offset)[0]
        return value

    def __set__(self, progress: "Progress", value: int) -> None:
        _WORD.pack_into(progress.page, self._offset, value)


class _Text:
    """A short text of the page, written once, before anyone asks for it."""

    def __init__(self, offset: int) -> None:
        self._slice = slice(offset, offset + _TEXT_BYTES)

    def __get__(self, progress: "Progress", owner: type) -> str:
        return progress.page[self._slice].rstrip(b"\0").decode()

    def __set__(self, progress: "Progress", value: str) -> None:
        progress.page[self._slice] = value.encode()[:_TEXT_BYTES].ljust(_TEXT_BYTES, b"\0")


class Progress:
    """One pair's counters.

    Attributes:
        state: a WorkerState.
        loaded_permille: how much of the model is loaded.
        num_steps: engine steps so far.
        num_turns: turns of the serving process' own clock so far; 0 before the loop runs.
        has_work: 1 while the engine is stepping or probes its device, 0 while it sleeps.
        num_running: attempts held.
        num_slots: attempts that can be held.
        device_ms: when the device last finished a step or a probe, in milliseconds of the system's monotonic clock,
            which all processes share; 0 before the first.
        num_attempts, num_prompt_tokens, num_output_tokens: so far.
        num_sequences: sequences that hold KV blocks.
        kv_blocks_used, kv_blocks: of the KV cache.
        metrics_port: where the serving process tells its own metrics, on loopback; 0 is nowhere.
        device, quantization: what was chosen, once known; else ''.
    """

    state = _Counter(0)
    loaded_permille = _Counter(1)
    num_steps = _Counter(2)
    num_turns = _Counter(3)
    has_work = _Counter(4)
    num_running = _Counter(5)
    num_slots = _Counter(6)
    device_ms = _Counter(7)
    num_attempts = _Counter(16)
    num_prompt_tokens = _Counter(17)
    num_output_tokens = _Counter(18)
    num_sequences = _Counter(19)
    kv_blocks_used = _Counter(20)
    kv_blocks = _Counter(21)
    metrics_port = _Counter(22)
    device = _Text(1024)
    quantization = _Text(1024 + _TEXT_BYTES)

    def __init__(self, fd: int) -> None:
        """Map the page behind `fd`, which stays the caller's."""
        self.page = mmap.mmap(fd, _SIZE)

    @classmethod
    def create(cls) -> tuple[Self, int]:
        """A fresh page, all zero, and the descriptor to hand to the processes."""
        fd = os.memfd_create("llamaherd-progress")
        os.ftruncate(fd, _SIZE)
        return cls(fd), fd

    def close(self) -> None:
        """Unmap the page; the counters cannot be read any more."""
        self.page.close()
