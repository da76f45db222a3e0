"""The same tokens whatever happens around them: other requests, preemption, holds, a new worker at any index."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from tests.engine.engine_driver import (
    PIECES,
    SAMPLED,
    Outcome,
    collect,
    drain,
    make_engine,
    make_request,
    name_of,
    play,
    random_request,
    run_alone,
)
from tests.engine.fake_model import EOS_ID, FakeModel, byte_ids
from worker.engine.choice import Choice
from worker.engine.sequence import FinishEvent, FinishReason, GenerationRequest


def requests_of_the_continuation_test() -> list[GenerationRequest]:
    """Any knobs; every second one has three choices."""
    requests = [random_request(random.Random(seed), "g", max_choices=1) for seed in range(12)]
    return [replace(each, num_choices=3 if seed % 2 else 1) for seed, each in enumerate(requests)]


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
        for choice, alone in enumerate(play(request).outcomes):
            assert outcomes[name_of(request.generation_id, choice)] == alone
    assert engine.num_preemptions > 0
    assert engine.kv_blocks_free == model.num_blocks


@pytest.mark.parametrize("seed", range(12))
def test_a_continuation_from_any_cut_gives_the_same_rest(seed: int) -> None:
    """A fresh engine with the first k tokens of the log: same ids, texts, logprobs and finishes, for every k."""
    request = requests_of_the_continuation_test()[seed]
    whole = play(request)
    for cut in range(len(whole.log) + 1):
        rest = play(replace(request, logged=tuple(whole.log[:cut])))
        num_logged = Counter(choice for choice, _ in whole.log[:cut])
        for choice, outcome in enumerate(rest.outcomes):
            assert outcome.tokens == whole.outcomes[choice].tokens[num_logged[choice] :]
            assert outcome.finish == whole.outcomes[choice].finish


def test_the_requests_of_the_continuation_test_cover_every_knob_and_end() -> None:
    """Sampled and greedy, each knob, stop strings, multi-byte text, and each way a choice ends by itself."""
    requests = requests_of_the_continuation_test()
    outcomes = [outcome for request in requests for outcome in play(request).outcomes]
    reasons = {outcome.finish.reason for outcome in outcomes if outcome.finish}
    assert reasons >= {FinishReason.EOS, FinishReason.STOP_STRING, FinishReason.STOP_TOKEN, FinishReason.LENGTH}
    assert any(not outcome.text.isascii() for outcome in outcomes)
    assert any(token.text == "" for outcome in outcomes for token in outcome.tokens)
    for name in ("min_p", "typical_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias"):
        assert any(getattr(each.sampling, name) != getattr(SAMPLED, name) for each in requests), name
    assert {each.sampling.temperature for each in requests} == {0.0, SAMPLED.temperature}
    assert any(each.stopping.min_new_tokens and not each.stopping.ignore_eos for each in requests)
    assert any(each.num_top_logprobs for each in requests)
    assert {each.num_choices for each in requests} == {1, 3}


def test_both_forms_of_a_log_are_one() -> None:
    """`output_ids` is short for the log of a single choice."""
    request = make_request()
    ids = tuple(run_alone(request).token_ids[:5])
    logged = tuple((0, token_id) for token_id in ids)
    assert run_alone(replace(request, output_ids=ids)) == run_alone(replace(request, logged=logged))


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
        alive = [g for g in requests if g not in dropped and not is_finished(requests[g], outcomes)]
        if rng.random() < 0.3 and len(requests) < 100 and len(alive) < 16:
            request = random_request(rng, f"g{len(requests)}")
            if rng.random() < 0.2:
                log = play(request).log
                request = replace(request, logged=tuple(log[: rng.randint(0, len(log))]))
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
    assert sum(request.num_choices > 1 for request in requests.values()) > 20
    for generation_id, request in requests.items():
        alone = play(request).outcomes
        for choice in range(request.num_choices):
            outcome = outcomes.get(name_of(generation_id, choice), Outcome())
            assert_as_alone(request, choice, outcome, alone[choice], generation_id in dropped)


def is_finished(request: GenerationRequest, outcomes: dict[str, Outcome]) -> bool:
    """Whether each choice has its FinishEvent."""
    names = [name_of(request.generation_id, choice) for choice in range(request.num_choices)]
    return all(name in outcomes and outcomes[name].finish for name in names)


def assert_as_alone(
    request: GenerationRequest, choice: int, outcome: Outcome, alone: Outcome, was_dropped: bool
) -> None:
    """The events of a choice are those it has alone, or a prefix of them when it was cut short."""
    if was_dropped or (outcome.finish and outcome.finish.reason is FinishReason.CANCELLED):
        assert outcome.tokens == alone.tokens[: len(outcome.tokens)]
    else:
        assert outcome == alone
    if outcome.finish and outcome.finish.reason is FinishReason.CANCELLED:
        text = Choice(PIECES, request.stopping, strip_leading_space=request.strip_leading_space)
        logged = "".join(text.push(token_id) for token_id in request.outputs[choice])
        rest = "".join(text.push(token_id) for token_id in outcome.token_ids)
        assert logged + outcome.text == logged + rest + text.flush()
