"""A stand-in for the engine: the next token is a function of prompt and output so far. Special prompts misbehave.

Tokens are ids below VOCAB; the text of a token is its id and a space, so a text shows at once what was lost.
Choice c of several ends c tokens before max_new_tokens, so that they do not end together.
"""

import os
import signal
import threading
import time
import zlib
from collections.abc import Callable, Sequence

from worker.engine.occupancy import Occupancy
from worker.engine.sequence import (
    FinishEvent,
    FinishReason,
    GenerationRequest,
    PrefilledEvent,
    StartedEvent,
    StepEvent,
    TokenEvent,
)

VOCAB = 1000
POISON = 666  # a prompt that begins so kills the process at its first step
HANG = 667  # a prompt that begins so blocks the engine for ever
REFUSED = 668  # a prompt that begins so is refused
BROKEN = 669  # a prompt that begins so raises out of `step`


def next_token(prompt_ids: Sequence[int], output_ids: Sequence[int], choice: int = 0) -> int:
    """The token of a choice after these: 10 <= id < VOCAB."""
    packed = b"".join(token.to_bytes(4, "little") for token in (*prompt_ids, *output_ids))
    return 10 + zlib.crc32(packed, choice) % (VOCAB - 10)


def expected_ids(prompt_ids: Sequence[int], num_tokens: int, choice: int = 0) -> list[int]:
    """What an undisturbed choice makes."""
    output: list[int] = []
    while len(output) < num_tokens:
        output.append(next_token(prompt_ids, output, choice))
    return output


def text_of(token_id: int) -> str:
    """The text of one token."""
    return f"{token_id} "


class Gate:
    """A pace: lets the double make only as many steps as the test allows."""

    def __init__(self, num_steps: int = 0) -> None:
        self._permits = threading.Semaphore(num_steps)
        self._is_open = False

    def __call__(self) -> None:
        """Wait for the permit of one step."""
        if not self._is_open:
            self._permits.acquire()

    def allow(self, num_steps: int) -> None:
        """Let the engine make so many further steps."""
        self._permits.release(num_steps)

    def open(self) -> None:
        """Let it go on for ever."""
        self._is_open = True
        self._permits.release()


class EngineDouble:
    """Implements worker.engine_loop.SteppingEngine.

    Every step first calls `pace`: a test decides there when, and whether, a step is made. So does a probe `on_probe`.
    """

    def __init__(
        self, pace: Callable[[], object] = lambda: None, on_probe: Callable[[], object] = lambda: None
    ) -> None:
        self.pace = pace
        self.on_probe = on_probe
        self._requests: dict[str, GenerationRequest] = {}
        self._outputs: dict[str, list[list[int]]] = {}  # by choice
        self._open: dict[str, set[int]] = {}
        self._started: set[str] = set()
        self._cancelled: set[str] = set()
        self._held: set[str] = set()
        self.num_steps = 0
        self.num_probes = 0
        self.num_scheduled = 0
        self.num_steps_at_cancel = 0

    @property
    def num_requests(self) -> int:
        """Generations in the engine."""
        return len(self._requests)

    def add(self, request: GenerationRequest) -> None:
        """As the engine does."""
        if request.prompt_ids[0] == REFUSED:
            raise ValueError("this prompt is refused")
        self._requests[request.generation_id] = request
        self._outputs[request.generation_id] = request.outputs
        self._open[request.generation_id] = set(range(request.num_choices))

    def cancel(self, generation_id: str) -> None:
        """As the engine does."""
        if generation_id in self._requests:
            self._cancelled.add(generation_id)
            self.num_steps_at_cancel = self.num_steps

    def drop(self, generation_id: str) -> None:
        """As the engine does."""
        self._requests.pop(generation_id, None)
        self._cancelled.discard(generation_id)
        self._held.discard(generation_id)
        self._started.discard(generation_id)

    def hold(self, generation_id: str, held: bool) -> None:
        """As the engine does."""
        if held:
            self._held.add(generation_id)
        else:
            self._held.discard(generation_id)

    @property
    def occupancy(self) -> Occupancy:
        """As the engine does; a block for each generation, of as many as there are tokens."""
        num_requests = len(self._requests)
        return Occupancy(num_requests, self.num_scheduled, num_requests, VOCAB, 0)

    @property
    def has_work(self) -> bool:
        """As the engine does."""
        return any(self._is_due(each) for each in self._requests.values())

    @property
    def next_deadline_s(self) -> float | None:
        """As the engine does."""
        deadlines = [each.deadline_s for each in self._requests.values() if each.deadline_s is not None]
        return min(deadlines, default=None)

    def check(self) -> None:
        """As the engine does."""
        assert self._cancelled <= set(self._requests)

    def probe(self) -> None:
        """Calls `on_probe`: a test decides there what the device does."""
        self.num_probes += 1
        self.on_probe()

    def step(self) -> list[StepEvent]:
        """One token for each generation that is due."""
        self.pace()
        self.num_steps += 1
        events: list[StepEvent] = []
        self.num_scheduled = sum(map(self._is_due, self._requests.values()))
        for request in tuple(self._requests.values()):
            if self._is_due(request):
                events += self._advance(request)
        return events

    def _is_due(self, request: GenerationRequest) -> bool:
        is_over = request.deadline_s is not None and time.monotonic() >= request.deadline_s
        return is_over or request.generation_id in self._cancelled or request.generation_id not in self._held

    def _advance(self, request: GenerationRequest) -> list[StepEvent]:
        _misbehave(request.prompt_ids[0])
        generation_id, outputs = request.generation_id, self._outputs[request.generation_id]
        if generation_id in self._cancelled:
            return self._cut(request, FinishReason.CANCELLED)
        if request.deadline_s is not None and time.monotonic() >= request.deadline_s:
            return self._cut(request, FinishReason.TIME_LIMIT)
        events: list[StepEvent] = []
        if generation_id not in self._started:
            self._started.add(generation_id)
            events += [StartedEvent(generation_id, time.monotonic()), PrefilledEvent(generation_id, time.monotonic())]
        for choice in sorted(self._open[generation_id]):
            output, length = outputs[choice], max(1, request.stopping.max_new_tokens - choice)
            if len(output) < length:
                token_id = next_token(request.prompt_ids, output, choice)
                events.append(TokenEvent(generation_id, choice, len(output), token_id, text_of(token_id), -0.5))
                output.append(token_id)
            if len(output) >= length:
                events.append(self._end(request, choice, FinishReason.LENGTH))
        return events

    def _cut(self, request: GenerationRequest, reason: FinishReason) -> list[StepEvent]:
        return [self._end(request, choice, reason) for choice in sorted(self._open[request.generation_id])]

    def _end(self, request: GenerationRequest, choice: int, reason: FinishReason) -> FinishEvent:
        left = self._open[request.generation_id]
        left.discard(choice)
        if not left:
            self.drop(request.generation_id)
        return FinishEvent(request.generation_id, choice, reason, None, "")


def _misbehave(first_id: int) -> None:
    if first_id == POISON:
        os.kill(os.getpid(), signal.SIGKILL)
    if first_id == HANG:
        threading.Event().wait()
    if first_id == BROKEN:
        raise RuntimeError("the device is lost")
