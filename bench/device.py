"""The device that is measured: its name, times of its work, its copy bandwidth, and its clocks while something runs."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from types import TracebackType
from typing import Self

import torch

SAMPLE_MS = 50
FIELDS = {  # of nvidia-smi, and what a row calls them
    "clocks.current.sm": "sm_mhz",
    "clocks.current.memory": "memory_mhz",
    "power.draw": "watts",
    "temperature.gpu": "celsius",
}
REASONS = "clocks_event_reasons.active"


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU, without one the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


def device_name(device: torch.device) -> str:
    """As its maker calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def synchronize(device: torch.device) -> None:
    """Wait until all that was queued is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spans_ms(device: torch.device, call: Callable[[], object], repeats: int) -> list[float]:
    """Milliseconds from the end of one call to the end of the next, on the device; the first fifth is left out."""
    if device.type == "cuda":
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]  # type: ignore[no-untyped-call]
        for mark in marks:
            call()
            mark.record()
        torch.cuda.synchronize(device)
        spans = [first.elapsed_time(second) for first, second in pairwise(marks)]
    else:
        stamps = []
        for _ in range(repeats + 1):
            call()
            stamps.append(time.perf_counter() * 1e3)
        spans = [second - first for first, second in pairwise(stamps)]
    return spans[repeats // 5 :]


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second of a copy (negated on the way, so that a kernel makes it), read and written counted."""
    source = torch.randn(2**30 if device.type == "cuda" else 2**22, device=device)
    target = torch.empty_like(source)
    milliseconds = statistics.median(spans_ms(device, partial(torch.neg, source, out=target), 15))
    return 2 * source.nbytes / (milliseconds * 1e-3)


class Clocks:
    """What nvidia-smi says of the GPU, every SAMPLE_MS, while the block runs; nothing where there is none."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lines: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._device.type == "cuda" and shutil.which("nvidia-smi"):
            uuid = str(torch.cuda.get_device_properties(self._device).uuid)
            gpu = f"--id=GPU-{uuid.removeprefix('GPU-')}"
            query = f"--query-gpu={','.join([*FIELDS, REASONS])}"
            command = ["nvidia-smi", gpu, query, "--format=csv,noheader,nounits", f"--loop-ms={SAMPLE_MS}"]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            self._reader = threading.Thread(target=self._read)
            self._reader.start()
            self._wait_for_first()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process and self._reader:
            self._process.terminate()
            self._process.wait()
            self._reader.join()

    def summary(self) -> dict[str, float | str | None]:
        """Medians, the lowest SM clock, and every reason for a lower clock that was given (nvidia-smi's bits)."""
        return summary_of(self._lines)

    def _read(self) -> None:
        assert self._process
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.append(line.strip())

    def _wait_for_first(self) -> None:
        """nvidia-smi takes a moment to begin; what is measured must not be over by then."""
        end_s = time.monotonic() + 2
        while not self._lines and time.monotonic() < end_s and self._reader and self._reader.is_alive():
            time.sleep(0.005)


def summary_of(lines: list[str]) -> dict[str, float | str | None]:
    """See `Clocks.summary`; of lines that are no samples the last one is told, as the reason."""
    samples: list[tuple[float, ...]] = []
    reasons: set[str] = set()
    others = ""
    for line in lines:
        *numbers, reason = (part.strip() for part in line.split(","))
        try:
            sample = tuple(map(float, numbers))
        except ValueError:
            sample = ()
        if len(sample) == len(FIELDS):
            samples.append(sample)
            reasons.add(reason)
        else:
            others = line
    columns = list(zip(*samples, strict=True)) or [()] * len(FIELDS)
    found: dict[str, float | str | None] = {
        name: statistics.median(column) if column else None
        for name, column in zip(FIELDS.values(), columns, strict=True)
    }
    found["least_sm_mhz"] = min(columns[0], default=None)
    found["reasons"] = " ".join(sorted(reasons)) or others or None
    return found
