"""Several choices of one prompt: what they share, how each ends by itself, and what ends them all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.engine.engine_driver import (
    GREEDY,
    PIECES,
    SAMPLED,
    SETTINGS,
    Clock,
    Outcome,
    collect,
    drain,
    drain_events,
    make_engine,
    make_request,
    name_of,
    play,
    run_alone,
)
from tests.engine.fake_model import BOS_ID, EOS_ID, FakeModel, byte_ids
from worker.engine.engine import Engine, RequestRefused
from worker.engine.sequence import (
    FinishEvent,
    FinishReason,
    PrefilledEvent,
    StartedEvent,
    TokenEvent,
)

PROMPT = [BOS_ID, *range(20, 30)]  # 11 tokens: two full blocks of 4, and three tokens that each choice computes
THREE = make_request(prompt_ids=PROMPT, num_choices=3, ignore_eos=True)


def test_choices_share_the_prompts_full_blocks() -> None:
    """One computes them, the others refer to them; what is not full, and the output, is each one's own."""
    model = FakeModel()
    engine = make_engine(model)
    engine.add(THREE)
    engine.step()
    assert model.num_blocks - engine.kv_blocks_free == 3
    events = [*engine.step(), *engine.step()]
    assert [[(s.start, len(s.token_ids)) for s in batch] for batch in model.batches] == [
        [(0, 8)],
        [(8, 3), (8, 3), (8, 3)],
        [(11, 1)] * 3,
    ]
    assert model.num_blocks - engine.kv_blocks_free == 2 + 3 * 1
    tables = [slice_.block_table for slice_ in model.batches[-1]]
    assert all(table[:2] == tables[0][:2] for table in tables)
    assert len({table[2] for table in tables}) == 3
    assert [event.choice for event in events if isinstance(event, TokenEvent)] == [0, 1, 2, 0, 1, 2]


def test_a_generation_starts_and_prefills_once() -> None:
    """Whatever the number of its choices; each has one finish."""
    engine = make_engine()
    engine.add(THREE)
    events = drain_events(engine)
    assert [type(event) for event in events[:3]] == [StartedEvent, PrefilledEvent, TokenEvent]
    assert sum(isinstance(event, (StartedEvent, PrefilledEvent)) for event in events) == 2
    assert sorted(event.choice for event in events if isinstance(event, FinishEvent)) == [0, 1, 2]


def test_a_short_prompt_has_no_full_block_to_share() -> None:
    """All choices start at once."""
    model = FakeModel()
    engine = make_engine(model)
    engine.add(make_request(prompt_ids=[BOS_ID, 5, 6, 7], num_choices=3))
    engine.step()
    assert [len(batch) for batch in model.batches] == [3]


def test_a_prompt_of_exactly_full_blocks() -> None:
    """Its last token runs again in each choice, since its logits choose the next one, in a block of its own."""
    model = FakeModel()
    played = play(make_request(prompt_ids=PROMPT[:8], num_choices=2, ignore_eos=True), model)
    assert [(slice_.start, len(slice_.token_ids)) for slice_ in model.batches[1]] == [(8, 1), (4, 4)]
    assert len(played.log) == 2 * 20


def test_greedy_choices_are_the_single_choice() -> None:
    """Nothing is drawn."""
    request = make_request(prompt_ids=PROMPT, sampling=GREEDY)
    alone = run_alone(request)
    for outcome in play(replace(request, num_choices=3)).outcomes:
        assert [replace(token, choice=0) for token in outcome.tokens] == alone.tokens


def test_sampled_choices_differ_and_the_first_is_the_single_choice() -> None:
    """The choice is part of the random numbers' counter."""
    outcomes = play(THREE).outcomes
    assert outcomes[0] == run_alone(replace(THREE, num_choices=1))
    assert len({tuple(outcome.token_ids) for outcome in outcomes}) == 3


def test_each_choice_ends_by_itself() -> None:
    """Its blocks are free at once; the others go on."""
    request = replace(THREE, stopping=replace(THREE.stopping, ignore_eos=False))
    engine = make_engine()
    engine.add(request)
    free_at_finish = []
    outcomes: dict[str, Outcome] = {}
    while engine.has_work:
        events = engine.step()
        engine.check()
        collect(events, outcomes)
        free_at_finish += [engine.kv_blocks_free for event in events if isinstance(event, FinishEvent)]
    lengths = [len(outcomes[name_of("g", choice)].tokens) for choice in range(3)]
    assert len(set(lengths)) > 1, "the seed lets all choices end together"
    assert free_at_finish[-1] == 64
    assert free_at_finish[0] < 64


def test_a_cancel_ends_the_choices_that_still_run() -> None:
    """Each with its held text; one that has ended has no second finish."""
    stop_id = byte_ids("!")[0]
    request = replace(THREE, stopping=replace(THREE.stopping, stop_token_ids=(stop_id,)))
    engine = make_engine()
    engine.add(replace(request, logged=((1, stop_id),)))
    outcomes: dict[str, Outcome] = {}
    for _ in range(4):
        collect(engine.step(), outcomes)
    assert [outcome.finish.reason for outcome in outcomes.values() if outcome.finish] == [FinishReason.STOP_TOKEN]
    engine.cancel("g")
    collect(engine.step(), outcomes)
    reasons = [outcomes[name_of("g", choice)].finish for choice in range(3)]
    assert [finish and finish.reason for finish in reasons] == [
        FinishReason.CANCELLED,
        FinishReason.STOP_TOKEN,
        FinishReason.CANCELLED,
    ]
    assert not engine.has_work
    assert engine.kv_blocks_free == 64


def test_a_deadline_ends_running_and_waiting_choices() -> None:
    """In one step."""
    clock = Clock()
    engine = Engine(FakeModel(), PIECES, replace(SETTINGS, max_sequences=2), clock)
    engine.add(replace(THREE, deadline_s=105.0))
    for _ in range(3):
        engine.step()
    assert (engine.num_running, engine.num_waiting) == (2, 1)
    clock.now_s = 105.0
    finishes = [event for event in engine.step() if isinstance(event, FinishEvent)]
    assert [(event.choice, event.reason) for event in finishes] == [
        (choice, FinishReason.TIME_LIMIT) for choice in range(3)
    ]
    assert (engine.has_work, engine.kv_blocks_free) == (False, 64)


def test_a_choice_that_fails_ends_the_generation() -> None:
    """With one event, the last: the caller gets an error. Others in the batch are as alone."""
    crash_id = byte_ids("!")[0]
    model = FakeModel(crash_id=crash_id)
    engine = make_engine(model)
    engine.add(make_request("good", sampling=replace(SAMPLED, seed=5)))
    engine.add(replace(THREE, logged=((1, crash_id),)))
    events = drain_events(engine)
    outcomes: dict[str, Outcome] = {}
    collect(events, outcomes)
    assert outcomes["good"] == run_alone(make_request("good", sampling=replace(SAMPLED, seed=5)))
    of_three = [event for event in events if event.generation_id == "g"]
    assert of_three[-1] == FinishEvent(
        "g", 1, FinishReason.FAILED, None, "", "RuntimeError: the fake device ran out of memory"
    )
    assert sum(isinstance(event, FinishEvent) for event in of_three) == 1
    assert engine.kv_blocks_free == model.num_blocks


def test_a_hold_stops_all_choices() -> None:
    """They keep their blocks and go on where they were."""
    engine = make_engine()
    engine.add(THREE)
    outcomes: dict[str, Outcome] = {}
    for _ in range(4):
        collect(engine.step(), outcomes)
    engine.hold("g", True)
    assert not engine.has_work
    engine.hold("g", False)
    while engine.has_work:
        collect(engine.step(), outcomes)
    assert list(outcomes.values()) == play(THREE).outcomes


def test_a_dropped_generation_takes_all_its_choices() -> None:
    """Running and waiting; blocks are free at once."""
    engine = Engine(FakeModel(), PIECES, replace(SETTINGS, max_sequences=2), Clock())
    engine.add(THREE)
    for _ in range(3):
        engine.step()
    engine.drop("g")
    engine.check()
    assert (engine.num_running, engine.num_waiting, engine.kv_blocks_free) == (0, 0, 64)
    assert engine.step() == []


@pytest.mark.parametrize("max_sequences", [1, 2, 3])
def test_more_choices_than_slots(max_sequences: int) -> None:
    """They take their turn, with the tokens that they have side by side."""
    model = FakeModel()
    engine = Engine(model, PIECES, replace(SETTINGS, max_sequences=max_sequences), Clock())
    request = replace(THREE, num_choices=5)
    engine.add(request)
    outcomes = drain(engine)
    assert [outcomes[name_of("g", choice)] for choice in range(5)] == play(request).outcomes
    assert engine.kv_blocks_free == model.num_blocks


@pytest.mark.parametrize("num_blocks", [8, 9, 10, 13])
def test_a_pool_that_holds_hardly_one_choice(num_blocks: int) -> None:
    """Each choice fits alone, so all complete, with the tokens that they have in a large pool."""
    request = replace(THREE, num_choices=4)  # 31 tokens each
    model = FakeModel(num_blocks=num_blocks)
    engine = make_engine(model)
    engine.add(request)
    outcomes = drain(engine)
    assert [outcomes[name_of("g", choice)] for choice in range(4)] == play(request).outcomes
    assert engine.kv_blocks_free == num_blocks


def test_choices_that_wait_for_the_prompt_let_others_pass() -> None:
    """A younger request starts while the first choice still computes a long prompt; the choices follow."""
    model = FakeModel()
    engine = make_engine(model)
    engine.add(make_request("long", [BOS_ID] * 50, num_choices=3, ignore_eos=True))
    engine.add(make_request("short", [BOS_ID, 7], ignore_eos=True))
    outcomes: dict[str, Outcome] = {}
    collect(engine.step(), outcomes)
    assert len(outcomes["short"].tokens) == 1
    while engine.has_work:
        collect(engine.step(), outcomes)
    assert outcomes["short"] == run_alone(make_request("short", [BOS_ID, 7], ignore_eos=True))


def test_a_choice_that_ended_in_the_log_costs_nothing() -> None:
    """Its finish comes with the next step; the others share what they compute."""
    logged = ((1, 9), (1, EOS_ID), (0, 40))
    request = make_request(prompt_ids=PROMPT, num_choices=3, logged=logged)
    model = FakeModel()
    engine = make_engine(model)
    engine.add(request)
    first = engine.step()
    assert first[0] == FinishEvent("g", 1, FinishReason.EOS, None, "")
    engine.step()
    assert [(slice_.start, len(slice_.token_ids)) for slice_ in model.batches[1]] == [(8, 4), (8, 3)]
    outcomes: dict[str, Outcome] = {}
    collect(drain_events(engine), outcomes)
    assert set(outcomes) <= {"g", "g/2"}


def test_a_log_in_which_every_choice_ended() -> None:
    """Only finishes."""
    model = FakeModel()
    engine = make_engine(model)
    engine.add(make_request(num_choices=2, logged=((1, EOS_ID), (0, 7), (0, EOS_ID)), wants_prompt_logprobs=True))
    events = engine.step()
    assert [(type(event), event.choice) for event in events if isinstance(event, FinishEvent)] == [
        (FinishEvent, 0),
        (FinishEvent, 1),
    ]
    assert len(events) == 2
    assert model.batches == []
    assert not engine.has_work


@pytest.mark.parametrize("num_choices", [0, 17])
def test_a_number_of_choices_out_of_bounds_is_refused(num_choices: int) -> None:
    """Before it reaches the engine."""
    with pytest.raises(ValueError, match="num_choices is"):
        make_request(num_choices=num_choices)


def test_a_log_that_does_not_fit_the_request_is_refused() -> None:
    """An unknown choice, two logs at once, too many tokens, or tokens after an end."""
    with pytest.raises(ValueError, match="choice of a logged token is 2"):
        make_request(num_choices=2, logged=((2, 7),))
    with pytest.raises(ValueError, match="output_ids is for one choice"):
        make_request(num_choices=2, output_ids=(7,))
    with pytest.raises(ValueError, match="output_ids is for one choice"):
        make_request(output_ids=(7,), logged=((0, 7),))
    engine = make_engine()
    with pytest.raises(RequestRefused, match="2 tokens are in the log; max_new_tokens is 1"):
        engine.add(make_request(num_choices=2, max_new_tokens=1, logged=((1, 7), (0, 7), (1, 7))))
    with pytest.raises(RequestRefused, match="ended with EOS at token 0"):
        engine.add(make_request(num_choices=2, logged=((1, EOS_ID), (0, 7), (1, 7))))
    engine.check()
    assert not engine.has_work
