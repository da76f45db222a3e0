"""CUDA graphs of steps: captured once, their inputs copied in ahead of each replay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
import torch
from torch import Tensor

Numbers = Sequence[int] | np.ndarray[tuple[int], np.dtype[np.int32]]


class Recorder:
    """Captures steps one after the other, which share the memory of what they compute on the way.

    So no two of them may run at once, and of a replay only what `capture`'s step returned outlives the next.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, step: Callable[[], object]) -> None:
        """Run a step, and wait for it: loads its kernels, which a capture cannot."""
        step()
        self._stream.synchronize()

    def capture(self, step: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Record a step, which queues kernels and waits for nothing; with what it returned, which each replay fills."""
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            found = step()
        except BaseException:
            with suppress(RuntimeError):  # it has been given up already
                graph.capture_end()  # else the stream would record whatever comes next
            raise
        graph.capture_end()
        return graph, found


@contextmanager
def recording(device: torch.device) -> Iterator[Recorder]:
    """Record on a stream of its own, behind all that the current one has queued; after, that one waits for it."""
    caller = torch.cuda.current_stream(device)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch states no types here
    stream.wait_stream(caller)
    with torch.cuda.stream(stream):
        yield Recorder(stream)
    caller.wait_stream(stream)


class StagedNumbers:
    """Whole numbers written on the host and copied to one place on the device, without waiting for the device.

    Two pinned buffers take turns; one is written again only once its copy is done.
    """

    def __init__(self, size: int, device: torch.device, dtype: torch.dtype = torch.int32) -> None:
        self.on_device = torch.zeros(size, dtype=dtype, device=device)
        self._pinned = [torch.zeros(size, dtype=dtype, pin_memory=True) for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in self._pinned]  # type: ignore[no-untyped-call]
        self._turn = 0

    def copy(self, numbers: Numbers) -> None:
        """Queue the copy of `numbers` to the beginning of `on_device`, on the current stream."""
        self._turn ^= 1
        pinned, copied = self._pinned[self._turn], self._copied[self._turn]
        copied.synchronize()
        pinned.numpy()[: len(numbers)] = numbers
        self.on_device[: len(numbers)].copy_(pinned[: len(numbers)], non_blocking=True)
        copied.record()
