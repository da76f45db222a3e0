"""A worker without a model: real processes, but an engine that emits tokens at a set pace.

`python -m bench.paced` in place of `python -m worker`. PACED_RATE is tokens/s of all sequences together (0: no bound),
PACED_STEP_S the shortest step. One step gives every running sequence one token, as a model's step does; between steps
the engine sleeps, as one that waits for a GPU.
"""

import os
import sys
import time
from collections.abc import Sequence

from contract.bundle import (
    Architecture,
    ChatFormat,
    ChatFormatKind,
    GenerationDefaults,
    ModelBundle,
    Piece,
    PieceKind,
)
from worker.__main__ import main as run_worker
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
from worker.progress import Progress
from worker.run_engine import run_engine
from worker.served import Served
from worker.settings import WorkerSettings

VOCABULARY = 32_000
MODEL = "paced"
FIRST_ID = 259  # the ids below are control tokens and bytes
_FIRST_CHARACTER = 0x20000  # of a plane whose characters take four bytes, about what a token of English has


def paced_text(id_: int) -> str:
    """A word of this vocabulary: one character, so that a text has as many tokens as characters."""
    return chr(_FIRST_CHARACTER + id_)


def paced_id(seed: int, index: int) -> int:
    """The token at `index` of a generation whose prompt's last word has the id `seed`: what a reader may check."""
    return FIRST_ID + (seed * 7919 + index * 104_729) % (VOCABULARY - FIRST_ID)


def paced_bundle() -> ModelBundle:
    """A bundle of Llama 2's size and chat format, whose bytes encode that format's tags."""
    controls = [Piece("<unk>", PieceKind.UNKNOWN), Piece("<s>", PieceKind.CONTROL), Piece("</s>", PieceKind.CONTROL)]
    letters = [Piece(f"<0x{byte:02X}>", PieceKind.BYTE) for byte in range(256)]
    words = [Piece(paced_text(id_), PieceKind.NORMAL) for id_ in range(FIRST_ID, VOCABULARY)]
    return ModelBundle(
        pieces=(*controls, *letters, *words),
        merges=(),
        bos_id=1,
        eos_id=2,
        unk_id=0,
        eos_ids=(2,),
        context_length=100_000,
        vocab_size=VOCABULARY,
        chat_format=ChatFormat(ChatFormatKind.LLAMA2),
        defaults=GenerationDefaults(),
        quantization="fp16",
        architecture=Architecture("llama", 1, 1, 1, 1),
    )


class _Running:
    """One sequence: what it is and how far it is."""

    __slots__ = ("index", "request", "seed")

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.seed = next((id_ for id_ in reversed(request.prompt_ids) if id_ >= FIRST_ID), request.prompt_ids[-1])
        self.index = sum(map(len, request.outputs))


class PacedEngine:
    """Implements worker.engine_loop.SteppingEngine for one choice a request."""

    def __init__(self, rate: float, step_s: float) -> None:
        """Args: rate: tokens/s of all sequences, 0 for no bound; step_s: the shortest step."""
        self._rate = rate
        self._step_s = step_s
        self._next_s = 0.0
        self._running: dict[str, _Running] = {}
        self._held: set[str] = set()
        self._cancelled: set[str] = set()

    def add(self, request: GenerationRequest) -> None:
        """As the engine does."""
        self._running[request.generation_id] = _Running(request)

    def cancel(self, generation_id: str) -> None:
        """As the engine does."""
        if generation_id in self._running:
            self._cancelled.add(generation_id)

    def drop(self, generation_id: str) -> None:
        """As the engine does."""
        self._running.pop(generation_id, None)
        self._held.discard(generation_id)
        self._cancelled.discard(generation_id)

    def hold(self, generation_id: str, held: bool) -> None:
        """As the engine does."""
        if held and generation_id in self._running:
            self._held.add(generation_id)
        else:
            self._held.discard(generation_id)

    def check(self) -> None:
        """As the engine does."""
        assert self._held <= self._running.keys()

    def probe(self) -> None:
        """There is no device to lose."""

    @property
    def occupancy(self) -> Occupancy:
        """There is no KV cache: every sequence counts as a block of its own."""
        num_running = len(self._running)
        return Occupancy(num_running, num_running - len(self._held), num_running, num_running, 0)

    @property
    def has_work(self) -> bool:
        """As the engine does."""
        return len(self._running) > len(self._held) or bool(self._cancelled)

    @property
    def next_deadline_s(self) -> float | None:
        """No deadline is kept here: the generations are short."""
        return None

    def step(self) -> list[StepEvent]:
        """One token of each sequence that is not held, at the pace."""
        self._wait(len(self._running) - len(self._held))
        events: list[StepEvent] = []
        for generation_id, running in tuple(self._running.items()):
            if generation_id in self._cancelled:
                events.append(self._finish(generation_id, FinishReason.CANCELLED))
            elif generation_id not in self._held:
                events += self._advance(generation_id, running)
        return events

    def _wait(self, num_tokens: int) -> None:
        now_s = time.monotonic()
        if self._next_s > now_s:
            time.sleep(self._next_s - now_s)
            now_s = time.monotonic()
        period_s = max(self._step_s, num_tokens / self._rate if self._rate else 0.0)
        # A step that came late does not make the next ones come early by more than one step.
        self._next_s = max(self._next_s, now_s - period_s) + period_s

    def _advance(self, generation_id: str, running: _Running) -> Sequence[StepEvent]:
        index = running.index
        token_id = paced_id(running.seed, index)
        token = TokenEvent(generation_id, 0, index, token_id, paced_text(token_id), -0.5)
        running.index = index + 1
        if index and running.index < running.request.stopping.max_new_tokens:
            return (token,)
        now_s = time.monotonic()
        begun = (StartedEvent(generation_id, now_s), PrefilledEvent(generation_id, now_s)) if index == 0 else ()
        if running.index < running.request.stopping.max_new_tokens:
            return (*begun, token)
        return (*begun, token, self._finish(generation_id, FinishReason.LENGTH))

    def _finish(self, generation_id: str, reason: FinishReason) -> FinishEvent:
        self.drop(generation_id)
        return FinishEvent(generation_id, 0, reason, None, "")


def load_paced(settings: WorkerSettings, progress: Progress) -> Served:
    """In place of worker.load.load."""
    progress.device, progress.quantization, progress.loaded_permille = "none", "fp16", 1000
    rate, step_s = float(os.environ["PACED_RATE"]), float(os.environ["PACED_STEP_S"])
    return Served(paced_bundle(), PacedEngine(rate, step_s))


def main() -> int:
    """The supervisor; with the arguments that it gives, the engine process."""
    if len(sys.argv) > 1:
        return run_engine(load_paced, int(sys.argv[1]), int(sys.argv[2]))
    return run_worker(engine_command=(sys.executable, "-m", "bench.paced"))


if __name__ == "__main__":
    sys.exit(main())
