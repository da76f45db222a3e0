"""Drives an engine in tests: makes requests, steps until nothing is left, sorts events by generation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tests.engine.fake_model import BOS_ID, EOS_ID, VOCAB_SIZE, FakeModel, byte_fallback_pieces
from worker.engine.engine import Engine, EngineSettings, StepEvent
from worker.engine.sequence import (
    FinishEvent,
    GenerationRequest,
    PromptLogprobsEvent,
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
    """All events of one choice; the prompt's logprobs are with choice 0."""

    tokens: list[TokenEvent] = field(default_factory=list)
    finish: FinishEvent | None = None
    prompt_logprobs: PromptLogprobsEvent | None = None

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
    min_new_tokens: int = 0,
    num_choices: int = 1,
    logged: Sequence[tuple[int, int]] = (),
    num_top_logprobs: int = 0,
    wants_prompt_logprobs: bool = False,
) -> GenerationRequest:
    """A request with defaults for all that a test does not speak of."""
    return GenerationRequest(
        generation_id=generation_id,
        prompt_ids=tuple(prompt_ids),
        sampling=sampling,
        stopping=StoppingParams(max_new_tokens, stop_strings, (EOS_ID,), ignore_eos, stop_token_ids, min_new_tokens),
        output_ids=tuple(output_ids),
        deadline_s=deadline_s,
        num_choices=num_choices,
        logged=tuple(logged),
        num_top_logprobs=num_top_logprobs,
        wants_prompt_logprobs=wants_prompt_logprobs,
    )


def name_of(generation_id: str, choice: int) -> str:
    """Where `collect` puts the events of a choice: choice 0 has the name of its generation."""
    return f"{generation_id}/{choice}" if choice else generation_id


def collect(events: Sequence[StepEvent], outcomes: dict[str, Outcome]) -> None:
    """Sort events by choice; checks their order: the prompt, tokens by index, one finish, nothing after it."""
    for event in events:
        if isinstance(event, PromptLogprobsEvent):
            outcome = outcomes.setdefault(event.generation_id, Outcome())
            assert outcome.prompt_logprobs is None, "the prompt's logprobs come twice"
            assert not outcome.tokens, "the prompt's logprobs come after a token"
            outcome.prompt_logprobs = event
        if not isinstance(event, (TokenEvent, FinishEvent)):
            continue
        outcome = outcomes.setdefault(name_of(event.generation_id, event.choice), Outcome())
        assert outcome.finish is None, "an event after the finish"
        if isinstance(event, TokenEvent):
            if outcome.tokens:
                assert event.index == outcome.tokens[-1].index + 1
            outcome.tokens.append(event)
        else:
            outcome.finish = event


def drain(engine: Engine) -> dict[str, Outcome]:
    """Step until nothing is left to do; the pool must be empty then."""
    outcomes: dict[str, Outcome] = {}
    collect(drain_events(engine), outcomes)
    return outcomes


def drain_events(engine: Engine) -> list[StepEvent]:
    """As `drain`, with the events as they came."""
    events: list[StepEvent] = []
    for _ in range(MAX_STEPS):
        if not engine.has_work:
            break
        events += engine.step()
        engine.check()
    assert not engine.has_work
    assert (engine.num_running, engine.num_waiting) == (0, 0)
    return events


@dataclass
class Played:
    """A request that ran in an engine of its own.

    Attributes:
        log: (choice, token id) of its new tokens, as a worker would log them.
        outcomes: by choice.
    """

    log: list[tuple[int, int]]
    outcomes: list[Outcome]


def play(request: GenerationRequest, model: FakeModel | None = None) -> Played:
    """The request, with all its choices, in an engine of its own."""
    model = model or FakeModel()
    engine = make_engine(model)
    engine.add(request)
    events = drain_events(engine)
    assert engine.kv_blocks_free == model.num_blocks
    outcomes: dict[str, Outcome] = {}
    collect(events, outcomes)
    names = [name_of(request.generation_id, choice) for choice in range(request.num_choices)]
    log = [(event.choice, event.token_id) for event in events if isinstance(event, TokenEvent)]
    return Played(log, [outcomes.get(name, Outcome()) for name in names])


def run_alone(request: GenerationRequest, model: FakeModel | None = None) -> Outcome:
    """The request, of one choice, in an engine of its own."""
    (outcome,) = play(request, model).outcomes
    return outcome


def random_request(rng: random.Random, generation_id: str, *, max_choices: int = 3) -> GenerationRequest:
    """Anything the engine takes: greedy or sampled, any knob, with stop strings that the fake vocabulary produces."""
    sampling = GREEDY if rng.random() < 0.3 else replace(SAMPLED, seed=rng.getrandbits(64))
    if rng.random() < 0.5:
        sampling = replace(sampling, min_p=rng.choice([0.0, 0.01, 0.3]), typical_p=rng.choice([1.0, 0.9, 0.2]))
    if rng.random() < 0.5:
        sampling = replace(
            sampling,
            repetition_penalty=rng.choice([1.0, 1.4, 0.7, 100.0]),
            frequency_penalty=rng.choice([0.0, 0.6, -2.0]),
            presence_penalty=rng.choice([0.0, 1.5, -100.0]),
        )
    if rng.random() < 0.3:
        biased = rng.sample(range(VOCAB_SIZE), rng.randint(1, 40))
        sampling = replace(sampling, logit_bias=tuple((id_, rng.choice([-100.0, -1.0, 2.5, 4.0])) for id_ in biased))
    return make_request(
        generation_id,
        [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(1, 25))],
        sampling=sampling,
        max_new_tokens=rng.randint(1, 22),
        stop_strings=rng.choice([(), ("STOP", "end", "xd"), (" a\n", "\n\n", "\u4f60\u597dx"), ("the the", "\u00e9d")]),
        ignore_eos=rng.random() < 0.3,
        stop_token_ids=rng.choice([(), (), (VOCAB_SIZE - 1, VOCAB_SIZE - 4)]),
        min_new_tokens=rng.choice([0, 0, 6, 15]),
        num_choices=rng.randint(1, max_choices),
        num_top_logprobs=rng.choice([0, 0, 3, 20]),
        wants_prompt_logprobs=rng.random() < 0.2,
    )
