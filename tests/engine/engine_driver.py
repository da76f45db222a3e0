"""Drives an engine in tests: makes requests, steps until nothing is left, sorts events by generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.engine.fake_model import BOS_ID, EOS_ID, FakeModel, byte_fallback_pieces
from worker.engine.engine import Engine, EngineSettings, StepEvent
from worker.engine.sequence import (
    FinishEvent,
    GenerationRequest,
    SamplingParams,
    StoppingParams,
    TokenEvent,
)

PIECES = byte_fallback_pieces()
SETTINGS = EngineSettings(max_sequences=8, max_step_tokens=32, prefill_chunk=8)
GREEDY = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, seed=0)
SAMPLED = SamplingParams(temperature=1.2, top_k=50, top_p=0.98, seed=77)
MAX_STEPS = 5000


@dataclass
class Clock:
    """A monotonic clock that the test moves."""

    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Outcome:
    """All events of one generation."""

    tokens: list[TokenEvent] = field(default_factory=list)
    finish: FinishEvent | None = None

    @property
    def text(self) -> str:
        """The text a client has at the end."""
        return "".join(token.text for token in self.tokens) + (self.finish.held_text if self.finish else "")

    @property
    def token_ids(self) -> list[int]:
        """In order of index."""
        return [token.token_id for token in self.tokens]


def make_engine(model: FakeModel | None = None, clock: Clock | None = None) -> Engine:
    """An engine over the fake model."""
    return Engine(model or FakeModel(), PIECES, SETTINGS, clock or Clock())


def make_request(
    generation_id: str = "g",
    prompt_ids: Sequence[int] = (BOS_ID, 100, 7),
    *,
    sampling: SamplingParams = SAMPLED,
    max_new_tokens: int = 20,
    stop_strings: tuple[str, ...] = (),
    ignore_eos: bool = False,
    stop_token_ids: tuple[int, ...] = (),
    output_ids: Sequence[int] = (),
    deadline_s: float | None = None,
) -> GenerationRequest:
    """A request with defaults for all that a test does not speak of."""
    return GenerationRequest(
        generation_id=generation_id,
        prompt_ids=tuple(prompt_ids),
        sampling=sampling,
        stopping=StoppingParams(max_new_tokens, stop_strings, (EOS_ID,), ignore_eos, stop_token_ids),
        output_ids=tuple(output_ids),
        deadline_s=deadline_s,
    )


def collect(events: Sequence[StepEvent], outcomes: dict[str, Outcome]) -> None:
    """Sort events by generation; checks their order: tokens by index, one finish, nothing after it."""
    for event in events:
        outcome = outcomes.setdefault(event.generation_id, Outcome())
        assert outcome.finish is None, "an event after the finish"
        if isinstance(event, TokenEvent):
            if outcome.tokens:
                assert event.index == outcome.tokens[-1].index + 1
            outcome.tokens.append(event)
        elif isinstance(event, FinishEvent):
            outcome.finish = event


def drain(engine: Engine) -> dict[str, Outcome]:
    """Step until nothing is left to do; the pool must be empty then."""
    outcomes: dict[str, Outcome] = {}
    for _ in range(MAX_STEPS):
        if not engine.has_work:
            break
        collect(engine.step(), outcomes)
        engine.check()
    assert not engine.has_work
    assert (engine.num_running, engine.num_waiting) == (0, 0)
    return outcomes


def run_alone(request: GenerationRequest, model: FakeModel | None = None) -> Outcome:
    """The request in an engine of its own."""
    model = model or FakeModel()
    engine = make_engine(model)
    engine.add(request)
    outcome = drain(engine)[request.generation_id]
    assert engine.kv_blocks_free == model.num_blocks
    return outcome
