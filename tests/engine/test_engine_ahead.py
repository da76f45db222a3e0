"""The engine one step ahead of its device: the same events as one that waits, and nothing told of what ran too far."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.engine.engine_driver import (
    GREEDY,
    MAX_STEPS,
    PIECES,
    SAMPLED,
    SETTINGS,
    Clock,
    Outcome,
    collect,
    drain,
    make_engine,
    make_request,
    random_request,
    run_alone,
)
from tests.engine.fake_model import VOCAB_SIZE, FakeModel
from worker.engine.batch import AheadModel, SequenceSlice
from worker.engine.engine import Engine
from worker.engine.logprobs import ScoredToken
from worker.engine.sampler import SamplingRow, sample
from worker.engine.sequence import FinishReason


class FakeChoices:
    """Tokens that can be asked for once, and only while at most one step was queued after them."""

    def __init__(self, model: FakeAheadModel, tokens: list[ScoredToken]) -> None:
        self._model, self._tokens, self._number = model, tokens, model.num_queued

    def wait(self) -> list[ScoredToken]:
        """The tokens."""
        assert self._model.num_queued - self._number <= 1, "the host is more than a step ahead"
        self._model.num_read += 1
        return self._tokens


class FakeAheadModel(FakeModel):
    """Chooses by itself, by the sampler, and takes tokens by the row in which it chose them."""

    def __init__(
        self, *, block_size: int = 4, num_blocks: int = 64, crash_id: int | None = None, nan_id: int | None = None
    ):
        super().__init__(block_size=block_size, num_blocks=num_blocks, crash_id=crash_id, nan_id=nan_id)
        self.num_queued = self.num_read = self.num_ahead = 0
        self._chosen: list[int] = []

    def chooses(self, row: SamplingRow) -> bool:
        """As the GPU's kernel."""
        return row.rules is None and row.num_top == 0 and row.params.typical_p == 1.0

    def queue(self, slices: Sequence[SequenceSlice], rows: Sequence[SamplingRow]) -> FakeChoices | None:
        """See `AheadModel.queue`."""
        self.num_ahead += any(token_id < 0 for part in slices for token_id in part.token_ids)
        known = [replace(part, token_ids=[self._known(token_id) for token_id in part.token_ids]) for part in slices]
        logits = self.forward(known)
        tokens = sample(logits, rows) if rows else []
        self._chosen = [token.token_id for token in tokens]
        self.num_queued += 1
        return FakeChoices(self, tokens) if rows else None

    def _known(self, token_id: int) -> int:
        return token_id if token_id >= 0 else self._chosen[-1 - token_id]


def test_it_is_an_ahead_model() -> None:
    """And the model without `queue` is none."""
    assert isinstance(FakeAheadModel(), AheadModel)
    assert not isinstance(FakeModel(), AheadModel)


def test_a_lone_generation_runs_ahead_to_its_last_token_and_no_further() -> None:
    """Each step is queued before the one before is read; the length ends it without a step too many."""
    model = FakeAheadModel()
    engine = make_engine(model)
    request = make_request(prompt_ids=[5, 6, 7], max_new_tokens=6, ignore_eos=True)
    engine.add(request)
    outcome = drain(engine)["g"]
    assert outcome.token_ids == run_alone(request).token_ids
    assert (model.num_queued, model.num_read, model.num_ahead) == (6, 6, 5)


@pytest.mark.parametrize("seed", range(12))
def test_what_it_tells_is_what_the_waiting_engine_tells(seed: int) -> None:
    """Random requests that come, are held and are cancelled at random; few blocks, so that sequences are preempted."""
    rng = random.Random(seed)
    model = FakeAheadModel(num_blocks=rng.choice([14, 24, 64]))
    engine = Engine(model, PIECES, SETTINGS, Clock())
    requests = [random_request(rng, f"g{number}", max_choices=2) for number in range(24)]
    if seed % 2:  # nothing that has to wait
        requests = [
            make_request(r.generation_id, r.prompt_ids, sampling=rng.choice([GREEDY, SAMPLED])) for r in requests
        ]
    outcomes: dict[str, Outcome] = {}
    cancelled, waiting = set(), list(requests)
    for _ in range(MAX_STEPS):
        if waiting and rng.random() < 0.5:
            engine.add(waiting.pop())
        if rng.random() < 0.05:
            cancelled.add(victim := rng.choice(requests).generation_id)
            engine.cancel(victim)
        if rng.random() < 0.1:
            engine.hold(rng.choice(requests).generation_id, rng.random() < 0.3)
        if not waiting and not engine.has_work:
            for request in requests:
                engine.hold(request.generation_id, False)
            if not engine.has_work:
                break
        collect(engine.step(), outcomes)
        engine.check()
    assert engine.kv_blocks_free == model.num_blocks
    assert model.num_ahead > 10 or not seed % 2
    for request in requests:
        _assert_told(request.generation_id, outcomes, cancelled, run_of(request))


def run_of(request: object) -> dict[str, Outcome]:
    """All choices of the request in an engine that waits, alone."""
    engine = make_engine()
    engine.add(request)  # type: ignore[arg-type]
    return drain(engine)


def _assert_told(name: str, outcomes: dict[str, Outcome], cancelled: set[str], alone: dict[str, Outcome]) -> None:
    for place, expected in alone.items():
        found = outcomes[place]
        assert found.finish is not None
        if found.finish.reason is FinishReason.CANCELLED:
            assert name in cancelled
            assert found.token_ids == expected.token_ids[: len(found.token_ids)]
        else:
            assert [(t.index, t.token_id, t.text) for t in found.tokens] == [
                (t.index, t.token_id, t.text) for t in expected.tokens
            ]
            assert expected.finish is not None
            assert (found.finish.reason, found.finish.stop_string) == (
                expected.finish.reason,
                expected.finish.stop_string,
            )


def test_a_sequence_that_has_ended_gives_its_blocks_at_once_and_its_further_token_to_nobody() -> None:
    """An end that only the text shows is seen one step late; a newcomer takes the blocks meanwhile."""
    requests = [make_request("ends", [9, 8, number], max_new_tokens=40) for number in range(3, 60)]
    request = next(each for each in requests if _ends_early(run_alone(each)))
    expected = run_alone(request)
    model = FakeAheadModel(num_blocks=16)
    engine = make_engine(model)
    engine.add(request)
    engine.add(make_request("goes on", [1, 2], max_new_tokens=30, ignore_eos=True))
    engine.add(make_request("waits", [3] * 20, max_new_tokens=8, ignore_eos=True))
    outcomes = drain(engine)
    assert outcomes["ends"].token_ids == expected.token_ids
    assert len(outcomes["goes on"].tokens) == 30
    assert engine.kv_blocks_free == 16


def _ends_early(outcome: Outcome) -> bool:
    return outcome.finish is not None and outcome.finish.reason is FinishReason.EOS and len(outcome.tokens) < 12


def test_the_same_id_again_gets_none_of_the_dropped_ones_tokens() -> None:
    """Dropped and added again while the old one's token is under way."""
    model = FakeAheadModel()
    engine = make_engine(model)
    engine.add(make_request("g", [4, 5, 6], max_new_tokens=10, ignore_eos=True))
    for _ in range(3):
        engine.step()
    engine.drop("g")
    again = make_request("g", [7, 7], max_new_tokens=5, ignore_eos=True)
    engine.add(again)
    assert drain(engine)["g"].token_ids == run_alone(again).token_ids


def test_errors_hit_whom_they_belong_to() -> None:
    """Logits that are not finite, and an exception of the model, in the company of sound sequences."""
    model = FakeAheadModel(crash_id=VOCAB_SIZE - 1, nan_id=VOCAB_SIZE - 2)
    engine = make_engine(model)
    sound = [make_request(f"s{number}", [number + 3, 4], ignore_eos=True, sampling=GREEDY) for number in range(3)]
    for request in sound:
        engine.add(request)
    engine.step()
    engine.add(make_request("crashes", [5, VOCAB_SIZE - 1]))
    engine.add(make_request("nan", [5, VOCAB_SIZE - 2]))
    outcomes = drain(engine)
    for name in ("crashes", "nan"):
        finish = outcomes[name].finish
        assert finish is not None
        assert finish.reason is FinishReason.FAILED
    for request in sound:
        finish = outcomes[request.generation_id].finish
        assert finish is not None
        assert finish.reason in (FinishReason.LENGTH, FinishReason.FAILED)
        alone = run_alone(request, FakeModel(crash_id=VOCAB_SIZE - 1, nan_id=VOCAB_SIZE - 2))
        assert outcomes[request.generation_id].token_ids == alone.token_ids
