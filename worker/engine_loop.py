"""Runs an engine: commands in and reports out by a socket, a step in between."""

import enum
import math
import select
import socket
import time
from collections import deque
from contextlib import suppress
from typing import Any, Protocol

from worker.engine.occupancy import Occupancy
from worker.engine.sequence import FinishEvent, FinishReason, GenerationRequest, StepEvent
from worker.engine_wire import Frames, StepReport, frame, report_frame
from worker.progress import Progress

CHECK_AFTER_S = 1.0  # idle this long, the engine checks its invariants, once
PROBE_AFTER_S = 2.0  # a device that was not used for this long is probed, again and again
_RECEIVED_AT_ONCE = 1 << 20  # bytes


class SteppingEngine(Protocol):
    """What the loop needs of an engine; `worker.engine.engine.Engine` has it."""

    def add(self, request: GenerationRequest) -> None:
        """Take a request; raises RequestRefused."""
        ...

    def cancel(self, generation_id: str) -> None:
        """End the generation in the next step."""
        ...

    def drop(self, generation_id: str) -> None:
        """Forget the generation, without an event."""
        ...

    def hold(self, generation_id: str, held: bool) -> None:
        """Schedule the generation no more, or again."""
        ...

    def step(self) -> list[StepEvent]:
        """Compute at most one token of each generation."""
        ...

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        ...

    def probe(self) -> None:
        """Compute something tiny on the device; raise if it is lost."""
        ...

    @property
    def occupancy(self) -> Occupancy:
        """How full it is."""
        ...

    @property
    def has_work(self) -> bool:
        """Whether `step` would do something."""
        ...

    @property
    def next_deadline_s(self) -> float | None:
        """When `has_work` turns true by itself."""
        ...


class Command(enum.Enum):
    """What the serving process may ask; each comes with its arguments."""

    ADD = enum.auto()  # a GenerationRequest
    CANCEL = enum.auto()  # a generation's id, as the next two
    DROP = enum.auto()
    HOLD = enum.auto()  # and whether it is to be held
    SETTLE = enum.auto()  # a number, which comes back at a step border
    STOP = enum.auto()


class Told(enum.Enum):
    """What happens once, and is no step; each comes with its arguments."""

    LOADED = enum.auto()  # the bytes of the model bundle
    SETTLED = enum.auto()  # the number that was asked with
    ENDED = enum.auto()  # as it was asked to
    FAILED = enum.auto()  # by which error, as text


class ServerGone(Exception):
    """Nobody is at the other end of the socket any more."""


class EngineLoop:
    """An engine between two ends of its work: obey what was asked, step, report. Sleeps while there is no work.

    One thread does it all and shares its interpreter with nobody: what the serving process does never makes it wait,
    unless that process stops reading.
    """

    def __init__(self, engine: SteppingEngine, channel: socket.socket, progress: Progress) -> None:
        """Args: channel: a connected stream socket, in blocking mode."""
        self._engine = engine
        self._channel = channel
        self._progress = progress
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._frames = Frames()
        self._commands: deque[tuple[Any, ...]] = deque()
        self._is_checked = False
        self._device_used_s = float("-inf")  # never: the first thing it does is a probe
        self._note_occupancy()

    def run(self) -> None:
        """Step until told to stop. Every event has been reported when this returns.

        Raises what comes out of the engine, after it was told: nothing is left to be saved here then, another worker
        continues what this one held. Raises ServerGone.
        """
        try:
            self._step_on()
            self._tell(Told.ENDED)
        except ServerGone:
            raise
        except BaseException as error:
            with suppress(ServerGone):
                self._tell(Told.FAILED, str(error) or type(error).__name__)
            raise

    def _step_on(self) -> None:
        """Step until told to stop. Nothing is shown as work when this ends, and so before anyone is told."""
        try:
            while self._obey():
                started_s = time.perf_counter()
                self._report(self._engine.step(), time.perf_counter() - started_s)
                self._progress.num_steps += 1
                self._note_device_used()
        finally:
            self._progress.has_work = 0

    def _obey(self) -> bool:
        """Carry out what was commanded, and sleep while there is no work. False when told to stop."""
        while True:
            has_work = self._engine.has_work
            self._progress.has_work = int(has_work)
            if not has_work:
                self._probe_if_due()
            command = self._next_command(0.0 if has_work else self._sleep_s())
            if command is None:
                if has_work:
                    return True
                self._check_once()
                continue
            self._is_checked = False
            if command[0] is Command.STOP:
                return False
            self._carry_out(*command)

    def _next_command(self, wait_s: float) -> tuple[Any, ...] | None:
        """The oldest one, waiting for it no longer than this."""
        if not self._commands and self._poll.poll(math.ceil(wait_s * 1000)):
            try:
                data = self._channel.recv(_RECEIVED_AT_ONCE)
            except OSError as error:
                raise ServerGone from error
            if not data:
                raise ServerGone
            self._commands += self._frames.feed(data)
        return self._commands.popleft() if self._commands else None

    def _carry_out(self, command: Command, *arguments: Any) -> None:
        match command:
            case Command.ADD:
                self._add(*arguments)
            case Command.CANCEL:
                self._engine.cancel(*arguments)
            case Command.DROP:
                self._engine.drop(*arguments)
                self._note_occupancy()
            case Command.HOLD:
                self._engine.hold(*arguments)
            case Command.SETTLE:
                self._tell(Told.SETTLED, *arguments)

    def _add(self, request: GenerationRequest) -> None:
        try:
            self._engine.add(request)
        except Exception as error:  # one bad request never harms another
            refusal = FinishEvent(request.generation_id, 0, FinishReason.FAILED, None, "", str(error))
            self._send(report_frame(StepReport(0.0, 0, self._engine.occupancy.num_preemptions, [refusal])))

    def _report(self, events: list[StepEvent], took_s: float) -> None:
        occupancy = self._note_occupancy()
        self._send(report_frame(StepReport(took_s, occupancy.num_scheduled, occupancy.num_preemptions, events)))

    def _tell(self, told: Told, *arguments: object) -> None:
        self._send(frame((told, *arguments)))

    def _send(self, data: bytes) -> None:
        try:
            self._channel.sendall(data)
        except OSError as error:
            raise ServerGone from error

    def _sleep_s(self) -> float:
        """How long an idle engine may sleep: to its next deadline, and until its check or its next probe is due."""
        moments = [self._device_used_s + PROBE_AFTER_S]
        if (deadline_s := self._engine.next_deadline_s) is not None:
            moments.append(deadline_s)
        sleep_s = max(0.0, min(moments) - time.monotonic())
        return sleep_s if self._is_checked else min(sleep_s, CHECK_AFTER_S)

    def _probe_if_due(self) -> None:
        """Use a device that nobody uses: one that hangs or is lost must show before a request meets it.

        Shown as work, so that a probe that hangs is seen as a step that hangs.
        """
        if time.monotonic() - self._device_used_s >= PROBE_AFTER_S:
            self._progress.has_work = 1
            self._engine.probe()
            self._note_device_used()
            self._progress.has_work = 0

    def _note_device_used(self) -> None:
        self._device_used_s = time.monotonic()
        self._progress.device_ms = int(self._device_used_s * 1000)

    def _note_occupancy(self) -> Occupancy:
        occupancy, progress = self._engine.occupancy, self._progress
        progress.num_sequences = occupancy.num_running
        progress.kv_blocks_used, progress.kv_blocks = occupancy.kv_blocks_used, occupancy.kv_blocks
        return occupancy

    def _check_once(self) -> None:
        if not self._is_checked:
            self._engine.check()
            self._is_checked = True
