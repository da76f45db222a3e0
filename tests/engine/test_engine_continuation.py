"""The same tokens whatever happens around them: other requests, preemption, holds, a new worker at any index."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.engine.engine_driver import (
    GREEDY,
    PIECES,
    SAMPLED,
    Outcome,
    collect,
    drain,
    make_engine,
    make_request,
    run_alone,
)
from tests.engine.fake_model import EOS_ID, VOCAB_SIZE, FakeModel, byte_ids
from worker.engine.choice import Choice
from worker.engine.sequence import FinishEvent, FinishReason, GenerationRequest


def random_request(rng: random.Random, generation_id: str) -> GenerationRequest:
    """Anything the engine takes: greedy or sampled, with stop strings that the fake vocabulary produces."""
    sampling = GREEDY if rng.random() < 0.3 else replace(SAMPLED, seed=rng.getrandbits(64))
    return make_request(
        generation_id,
        [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(1, 25))],
        sampling=sampling,
        max_new_tokens=rng.randint(1, 30),
        stop_strings=rng.choice([(), ("STOP", "end", "xd"), (" a\n", "\n\n", "\u4f60\u597dx"), ("the the", "\u00e9d")]),
        ignore_eos=rng.random() < 0.3,
    )


def test_tokens_do_not_depend_on_the_batch() -> None:
    """30 requests together, in a pool that forces preemption: all events as alone."""
    rng = random.Random(1)
    requests = [random_request(rng, f"g{i}") for i in range(30)]
    model = FakeModel(num_blocks=30)
    engine = make_engine(model)
    for request in requests:
        engine.add(request)
    outcomes = drain(engine)
    for request in requests:
        assert outcomes[request.generation_id] == run_alone(request)
    assert engine.num_preemptions > 0
    assert engine.kv_blocks_free == model.num_blocks


@pytest.mark.parametrize("seed", range(12))
def test_a_continuation_from_any_cut_gives_the_same_rest(seed: int) -> None:
    """A fresh engine with the first k tokens in the log: same ids, texts, logprobs and finish, for every k."""
    request = random_request(random.Random(seed), "g")
    whole = run_alone(request)
    for cut in range(len(whole.tokens) + 1):
        rest = run_alone(replace(request, output_ids=tuple(whole.token_ids[:cut])))
        assert rest.tokens == whole.tokens[cut:]
        assert rest.finish == whole.finish


def test_the_requests_of_the_continuation_test_cover_every_end() -> None:
    """Sampled and greedy, stop strings, multi-byte text, and each way a choice ends by itself."""
    requests = [random_request(random.Random(seed), "g") for seed in range(12)]
    outcomes = [run_alone(request) for request in requests]
    reasons = {outcome.finish.reason for outcome in outcomes if outcome.finish}
    assert reasons >= {FinishReason.EOS, FinishReason.STOP_STRING, FinishReason.LENGTH}
    assert any(not outcome.text.isascii() for outcome in outcomes)
    assert any(token.text == "" for outcome in outcomes for token in outcome.tokens)


def test_a_log_that_has_ended_gives_only_its_finish() -> None:
    """A worker may die between the last token and the terminal entry: no forward pass, no token."""
    model = FakeModel()
    engine = make_engine(model)
    engine.add(make_request("eos", output_ids=[9, EOS_ID]))
    engine.add(make_request("length", output_ids=[9, 9], max_new_tokens=2))
    engine.add(make_request("stop", output_ids=byte_ids("xSTOP"), stop_strings=("STOP",)))
    engine.cancel("eos")  # too late: it has ended
    assert engine.has_work
    finishes = [event for event in engine.step() if isinstance(event, FinishEvent)]
    assert [(event.generation_id, event.reason, event.stop_string) for event in finishes] == [
        ("eos", FinishReason.EOS, None),
        ("length", FinishReason.LENGTH, None),
        ("stop", FinishReason.STOP_STRING, "STOP"),
    ]
    assert model.batches == []
    assert not engine.has_work


@pytest.mark.parametrize("seed", range(4))
def test_stress(seed: int) -> None:
    """Random arrivals (some continued), cancels, drops and holds over a tiny pool, check() after every step.

    Every generation that ends by itself has the events it has alone; one that was cut short has a prefix of them
    and, if cancelled, the text of exactly its tokens. Nothing is left in the pool.
    """
    rng = random.Random(seed)
    model = FakeModel(num_blocks=15)
    engine = make_engine(model)
    requests: dict[str, GenerationRequest] = {}
    outcomes: dict[str, Outcome] = {}
    held: set[str] = set()
    dropped: set[str] = set()
    for _ in range(900):
        alive = [g for g in requests if g not in dropped and (g not in outcomes or not outcomes[g].finish)]
        if rng.random() < 0.3 and len(requests) < 100 and len(alive) < 16:
            request = random_request(rng, f"g{len(requests)}")
            if rng.random() < 0.2:
                known = run_alone(request).token_ids
                request = replace(request, output_ids=tuple(known[: rng.randint(0, len(known))]))
            requests[request.generation_id] = request
            engine.add(request)
        elif alive and rng.random() < 0.3:
            generation_id = rng.choice(alive)
            action = rng.choice(["hold", "hold", "hold", "hold", "cancel", "drop"])
            if action == "hold":
                held ^= {generation_id}
                engine.hold(generation_id, generation_id in held)
            elif action == "cancel":
                engine.cancel(generation_id)
            else:
                engine.drop(generation_id)
                dropped.add(generation_id)
        collect(engine.step(), outcomes)
        engine.check()
    for generation_id in held:
        engine.hold(generation_id, False)
    while engine.has_work:
        collect(engine.step(), outcomes)
        engine.check()
    assert engine.num_preemptions >= 10
    assert (engine.num_running, engine.num_waiting, engine.kv_blocks_free) == (0, 0, model.num_blocks)
    for generation_id, request in requests.items():
        assert_as_alone(request, outcomes.get(generation_id, Outcome()), generation_id in dropped)


def assert_as_alone(request: GenerationRequest, outcome: Outcome, was_dropped: bool) -> None:
    """The events are those of the request alone, or a prefix of them when it was cut short."""
    alone = run_alone(request)
    if was_dropped or (outcome.finish and outcome.finish.reason is FinishReason.CANCELLED):
        assert outcome.tokens == alone.tokens[: len(outcome.tokens)]
    else:
        assert outcome == alone
    if outcome.finish and outcome.finish.reason is FinishReason.CANCELLED:
        choice = Choice(PIECES, request.stopping, strip_leading_space=request.strip_leading_space)
        logged = "".join(choice.push(token_id) for token_id in request.output_ids)
        rest = "".join(choice.push(token_id) for token_id in outcome.token_ids)
        assert logged + outcome.text == logged + rest + choice.flush()
