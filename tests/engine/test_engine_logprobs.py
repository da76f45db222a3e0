"""Logprobs in the engine's events: alternatives of output tokens, and the prompt's own tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.engine.engine_driver import (
    GREEDY,
    PIECES,
    Clock,
    Outcome,
    drain,
    make_engine,
    make_request,
    play,
    run_alone,
)
from tests.engine.fake_model import BOS_ID, VOCAB_SIZE, FakeModel, byte_ids
from worker.engine.batch import SequenceSlice
from worker.engine.engine import Engine, EngineSettings
from worker.engine.sequence import FinishReason

PROMPT = (BOS_ID, *range(30, 50))


def expected_logprobs(token_ids: tuple[int, ...]) -> torch.Tensor:
    """[len(token_ids), V] float64: the fake model's own log softmax after each token."""
    model = FakeModel()
    slice_ = SequenceSlice(token_ids, 0, range(32), wants_logits=True, wants_all_logits=True)
    return model.forward([slice_]).double().log_softmax(-1)


def assert_prompt_logprobs(outcome: Outcome, prompt_ids: tuple[int, ...], num_top: int) -> None:
    """Every token but the first, after those before it, with the likeliest ones at its place."""
    expected = expected_logprobs(prompt_ids)
    assert outcome.prompt_logprobs is not None
    assert [token.token_id for token in outcome.prompt_logprobs.tokens] == list(prompt_ids[1:])
    for row, token in enumerate(outcome.prompt_logprobs.tokens):
        assert token.logprob == pytest.approx(float(expected[row, token.token_id]), abs=1e-8)
        assert [top.token_id for top in token.top_logprobs] == expected[row].topk(num_top).indices.tolist()


def test_alternatives_are_of_the_models_own_distribution() -> None:
    """Whatever bends and filters the draw; and asking for them changes no token."""
    sampling = replace(GREEDY, logit_bias=((9, 100.0),), repetition_penalty=0.5)
    request = make_request(prompt_ids=PROMPT, sampling=sampling, max_new_tokens=5, num_top_logprobs=4)
    outcome = run_alone(request)
    expected = expected_logprobs((*PROMPT, *outcome.token_ids))[len(PROMPT) - 1 :]
    for row, token in enumerate(outcome.tokens):
        assert token.token_id == 9
        assert token.logprob == pytest.approx(float(expected[row, 9]), abs=1e-8)
        assert [top.token_id for top in token.top_logprobs] == expected[row].topk(4).indices.tolist()
    without = run_alone(replace(request, num_top_logprobs=0))
    assert [replace(token, top_logprobs=()) for token in outcome.tokens] == without.tokens


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_prompt_logprobs_come_whole_however_the_prompt_is_cut(chunk: int) -> None:
    """Once, before the first token; and asking for them changes no token."""
    request = make_request(prompt_ids=PROMPT, num_top_logprobs=2, wants_prompt_logprobs=True)
    engine = Engine(FakeModel(), PIECES, EngineSettings(8, 32, chunk), Clock())
    engine.add(request)
    outcome = drain(engine)["g"]
    assert_prompt_logprobs(outcome, PROMPT, 2)
    assert outcome.tokens == run_alone(replace(request, wants_prompt_logprobs=False)).tokens


def test_prompt_logprobs_with_choices_and_neighbours() -> None:
    """They come once for all choices; tokens of all are as alone."""
    several = make_request("a", PROMPT, num_choices=3, wants_prompt_logprobs=True)
    neighbour = make_request("b", [BOS_ID, 5])
    engine = make_engine()
    engine.add(neighbour)
    engine.add(several)
    outcomes = drain(engine)
    assert_prompt_logprobs(outcomes["a"], PROMPT, 0)
    assert [outcomes[name] for name in ("a", "a/1", "a/2")] == play(several).outcomes
    assert outcomes["b"] == run_alone(neighbour)


def test_prompt_logprobs_survive_a_preemption_in_mid_prompt() -> None:
    """The older request takes the blocks when half the prompt is computed; then it is computed again, told once."""
    older = make_request("older", [BOS_ID] * 7, ignore_eos=True)
    younger = make_request("younger", PROMPT, max_new_tokens=1, num_top_logprobs=1, wants_prompt_logprobs=True)
    engine = Engine(FakeModel(num_blocks=8), PIECES, EngineSettings(2, 32, 3), Clock())
    engine.add(older)
    engine.add(younger)
    outcomes = drain(engine)
    assert engine.num_preemptions > 0
    assert_prompt_logprobs(outcomes["younger"], PROMPT, 1)
    assert outcomes["older"] == run_alone(older)


def test_a_prompt_of_one_token_has_an_empty_list() -> None:
    """The first token has none; the event comes all the same."""
    outcome = run_alone(make_request(prompt_ids=[BOS_ID], wants_prompt_logprobs=True))
    assert outcome.prompt_logprobs is not None
    assert outcome.prompt_logprobs.tokens == ()


def test_a_continuation_tells_them_again() -> None:
    """The caller decides whether an earlier attempt has told them; rows of output tokens are no prompt's."""
    request = make_request(prompt_ids=PROMPT, wants_prompt_logprobs=True)
    known = tuple(run_alone(request).token_ids[:7])
    assert_prompt_logprobs(run_alone(replace(request, output_ids=known)), PROMPT, 0)


def test_prompt_logits_that_are_not_finite_fail_the_generation() -> None:
    """Rather than telling of a probability that is none."""
    nan_id = byte_ids("!")[0]
    model = FakeModel(nan_id=nan_id)
    outcome = run_alone(make_request(prompt_ids=[BOS_ID, nan_id, 7], wants_prompt_logprobs=True), model)
    assert outcome.prompt_logprobs is None
    assert outcome.finish is not None
    assert (outcome.finish.reason, outcome.finish.error) == (FinishReason.FAILED, "the logits are not finite")


def test_a_large_prompt_is_scored_in_pieces() -> None:
    """More rows in one step than are scored at once."""
    prompt = (BOS_ID, *[3 + i % 200 for i in range(99)])
    request = make_request(prompt_ids=prompt, max_new_tokens=1, wants_prompt_logprobs=True)
    engine = Engine(FakeModel(), PIECES, EngineSettings(8, 128, 128), Clock())
    engine.add(request)
    assert_prompt_logprobs(drain(engine)["g"], prompt, 0)


@pytest.mark.parametrize("num_top", [-1, 21])
def test_a_number_of_alternatives_out_of_bounds_is_refused(num_top: int) -> None:
    """Before it reaches the engine."""
    with pytest.raises(ValueError, match="num_top_logprobs is"):
        make_request(num_top_logprobs=num_top)


def test_the_text_of_an_alternative_stands_by_itself() -> None:
    """A byte of a character appears as U+FFFD; a control token has no text."""
    assert PIECES.text_of(byte_ids("x")[0]) == "x"
    assert PIECES.text_of(byte_ids("\u00e9")[0]) == "\ufffd"
    assert PIECES.text_of(BOS_ID) == ""
    assert PIECES.text_of(VOCAB_SIZE + 5) == ""
