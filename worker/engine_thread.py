"""Runs the engine on one thread: commands in by a queue, events out with one hop to the event loop per step."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from worker.engine.occupancy import Occupancy
from worker.engine.sequence import FinishEvent, FinishReason, GenerationRequest, StepEvent
from worker.progress import Progress

CHECK_AFTER_S = 1.0  # idle this long, the engine checks its invariants, once
PROBE_AFTER_S = 2.0  # a device that was not used for this long is probed, again and again


class SteppingEngine(Protocol):
    """What the thread needs of an engine; `worker.engine.engine.Engine` has it."""

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


Command = Callable[[SteppingEngine], None]
Deliver = Callable[[Sequence[StepEvent]], None]
HandOver = Callable[[list[StepEvent]], None]


class EngineThread:
    """An engine on a thread of its own. The methods are called on the event loop and return at once.

    An exception out of the engine ends the thread and comes out of `run`; nothing is left to be saved in the
    process then: another worker continues what this one held.
    """

    def __init__(self, engine: SteppingEngine, progress: Progress) -> None:
        self._engine = engine
        self._progress = progress
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._is_checked = False
        self._device_used_s = float("-inf")  # never: the first thing it does is a probe
        self._refusals: list[StepEvent] = []

    async def run(self, deliver: Deliver) -> None:
        """Step until `stop`. Every event has been delivered when this returns.

        Args:
            deliver: called on the event loop with the events of one step; must not block.
        """
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def hand_over(events: list[StepEvent]) -> None:
            if events:
                loop.call_soon_threadsafe(deliver, events)

        threading.Thread(target=self._main, args=(loop, hand_over, ended), name="engine", daemon=True).start()
        try:
            await asyncio.shield(ended)
        except asyncio.CancelledError:
            self.stop()
            await asyncio.wait([ended])  # the thread ends at its next step border
            raise

    def stop(self) -> None:
        """End `run` at the next step border."""
        self._commands.put(None)

    def add(self, request: GenerationRequest) -> None:
        """Hand a request to the engine; a request it refuses ends with a FinishEvent FAILED."""
        self._commands.put(lambda engine: self._add(engine, request))

    def cancel(self, generation_id: str) -> None:
        """End the generation in the next step."""
        self._commands.put(lambda engine: engine.cancel(generation_id))

    def drop(self, generation_id: str) -> None:
        """Forget the generation. Events that are under way may still be delivered."""
        self._commands.put(lambda engine: engine.drop(generation_id))

    def hold(self, generation_id: str, held: bool) -> None:
        """Schedule the generation no more, or again."""
        self._commands.put(lambda engine: engine.hold(generation_id, held))

    async def settled(self) -> None:
        """Return at a step border, with every earlier command carried out."""
        loop = asyncio.get_running_loop()
        reached: asyncio.Future[None] = loop.create_future()

        def note() -> None:
            if not reached.done():
                reached.set_result(None)

        def tell(_: SteppingEngine) -> None:
            loop.call_soon_threadsafe(note)

        self._commands.put(tell)
        await reached

    def _main(self, loop: asyncio.AbstractEventLoop, hand_over: HandOver, ended: "asyncio.Future[None]") -> None:
        try:
            while self._obey(hand_over):
                hand_over(self._engine.step())
                self._progress.num_steps += 1
                self._note_device_used()
        except BaseException as error:
            self._progress.has_work = 0
            loop.call_soon_threadsafe(ended.set_exception, error)
        else:
            self._progress.has_work = 0
            loop.call_soon_threadsafe(ended.set_result, None)

    def _obey(self, hand_over: HandOver) -> bool:
        """Carry out what was commanded, and sleep while there is no work. False when told to stop."""
        while True:
            has_work = self._engine.has_work
            self._progress.has_work = int(has_work)
            if not has_work:
                self._probe_if_due()
            try:
                command = self._commands.get(block=not has_work, timeout=self._sleep_s())
            except queue.Empty:
                if has_work:
                    return True
                self._check_once()
                continue
            self._is_checked = False
            if command is None:
                return False
            command(self._engine)
            hand_over(self._refusals)
            self._refusals = []

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

    def _check_once(self) -> None:
        if not self._is_checked:
            self._engine.check()
            self._is_checked = True

    def _add(self, engine: SteppingEngine, request: GenerationRequest) -> None:
        try:
            engine.add(request)
        except Exception as error:  # one bad request never harms another
            refusal = FinishEvent(request.generation_id, 0, FinishReason.FAILED, None, "", str(error))
            self._refusals.append(refusal)
