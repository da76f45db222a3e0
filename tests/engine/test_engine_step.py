"""The engine step by step, with a fake model: its events, its ends, what it refuses, and whom an error hits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from tests.engine.engine_driver import (
    GREEDY,
    MAX_STEPS,
    PIECES,
    SAMPLED,
    Clock,
    Outcome,
    collect,
    drain,
    make_engine,
    make_request,
    run_alone,
)
from tests.engine.fake_model import BOS_ID, EOS_ID, VOCAB_SIZE, FakeModel, byte_ids
from worker.engine.batch import SequenceSlice
from worker.engine.engine import Engine, EngineSettings, RequestRefused
from worker.engine.sequence import (
    FinishEvent,
    FinishReason,
    GenerationRequest,
    PrefilledEvent,
    StartedEvent,
    TokenEvent,
)


class ScriptedModel(FakeModel):
    """Continues a prompt of `prompt_len` tokens with the given ones, whatever is sampled otherwise."""

    def __init__(self, script: Sequence[int], prompt_len: int = 1) -> None:
        super().__init__()
        self._script = script
        self._prompt_len = prompt_len

    def forward(self, slices: Sequence[SequenceSlice]) -> torch.Tensor:
        """One-hot logits of the scripted token."""
        super().forward(slices)
        ends = [slice_.start + len(slice_.token_ids) for slice_ in slices if slice_.wants_logits]
        logits = torch.zeros(len(ends), VOCAB_SIZE)
        for row, end in enumerate(ends):
            logits[row, self._script[end - self._prompt_len]] = 100.0
        return logits


def run_script(script: Sequence[int], request: GenerationRequest) -> Outcome:
    """The request with a model that says `script`."""
    return run_alone(replace(request, prompt_ids=(BOS_ID,), sampling=GREEDY), ScriptedModel(script))


def finish_of(outcome: Outcome) -> tuple[FinishReason, str | None, str]:
    """Reason, stop string, held text."""
    assert outcome.finish is not None
    return outcome.finish.reason, outcome.finish.stop_string, outcome.finish.held_text


# --- events and ends


def test_a_generation_starts_prefills_and_gives_its_tokens() -> None:
    """A prompt of 10 in chunks of 8: started with the first slice, prefilled and first token with the second."""
    engine = make_engine()
    engine.add(make_request(prompt_ids=[BOS_ID] * 10, max_new_tokens=2, ignore_eos=True))
    kinds = [[type(event) for event in engine.step()] for _ in range(3)]
    assert kinds == [[StartedEvent], [PrefilledEvent, TokenEvent], [TokenEvent, FinishEvent]]
    assert not engine.has_work


def test_length_flushes_with_the_last_token() -> None:
    """Half a character and the beginning of a stop string are text once no more comes."""
    outcome = run_script(
        [*byte_ids("aST"), *byte_ids("\u00e9")[:1]], make_request(max_new_tokens=4, stop_strings=("STOP",))
    )
    assert [token.text for token in outcome.tokens] == ["a", "", "", "ST\ufffd"]
    assert finish_of(outcome) == (FinishReason.LENGTH, None, "")


def test_eos_is_a_token_that_releases_what_was_held() -> None:
    """Its own piece is not text."""
    outcome = run_script([*byte_ids("aS"), EOS_ID], make_request(stop_strings=("STOP",)))
    assert [(token.token_id, token.text) for token in outcome.tokens][1:] == [
        (byte_ids("S")[0], ""),
        (EOS_ID, "S"),
    ]
    assert finish_of(outcome) == (FinishReason.EOS, None, "")


def test_ignored_eos_has_no_text_and_goes_on() -> None:
    """Until max_new_tokens."""
    outcome = run_script([EOS_ID, *byte_ids("ab")], make_request(max_new_tokens=3, ignore_eos=True))
    assert outcome.text == "ab"
    assert finish_of(outcome) == (FinishReason.LENGTH, None, "")


def test_a_stop_token_ends_even_when_eos_is_ignored() -> None:
    """Its piece is not text."""
    stop_id = byte_ids("!")[0]
    outcome = run_script(byte_ids("ab!"), make_request(ignore_eos=True, stop_token_ids=(stop_id,)))
    assert (outcome.text, outcome.token_ids[-1]) == ("ab", stop_id)
    assert finish_of(outcome) == (FinishReason.STOP_TOKEN, None, "")


def test_a_stop_string_ends_with_the_token_that_completes_it() -> None:
    """Text before it is released with that token."""
    outcome = run_script(byte_ids("ab STOP no"), make_request(stop_strings=("STOP",)))
    assert (outcome.text, len(outcome.tokens)) == ("ab ", len("ab STOP"))
    assert finish_of(outcome) == (FinishReason.STOP_STRING, "STOP", "")


def test_a_stop_string_that_only_the_end_decides_is_the_reason() -> None:
    """ "bc" is complete but "abcd" could have started earlier, when EOS comes."""
    outcome = run_script([*byte_ids("abc"), EOS_ID], make_request(stop_strings=("bc", "abcd")))
    assert outcome.text == "a"
    assert finish_of(outcome) == (FinishReason.STOP_STRING, "bc", "")


def test_a_deadline_ends_a_running_and_a_waiting_generation() -> None:
    """In the next step; the text held back comes with the finish."""
    clock = Clock()
    engine = Engine(ScriptedModel(byte_ids("aST")), PIECES, EngineSettings(1, 8, 8), clock)
    request = make_request("a", (BOS_ID,), sampling=GREEDY, stop_strings=("STOP",), deadline_s=105.0)
    engine.add(request)
    engine.add(replace(request, generation_id="b"))
    outcomes: dict[str, Outcome] = {}
    for _ in range(3):
        collect(engine.step(), outcomes)
    assert (engine.num_running, engine.num_waiting) == (1, 1)
    assert engine.next_deadline_s == 105.0
    clock.now_s = 105.0
    collect(engine.step(), outcomes)
    assert finish_of(outcomes["a"]) == (FinishReason.TIME_LIMIT, None, "ST")
    assert outcomes["a"].text == "aST"
    assert finish_of(outcomes["b"]) == (FinishReason.TIME_LIMIT, None, "")
    assert not engine.has_work
    assert engine.next_deadline_s is None


def test_a_cancel_ends_running_waiting_and_held_generations() -> None:
    """In the next step, which has_work announces; unknown ids are ignored."""
    engine = Engine(FakeModel(), PIECES, EngineSettings(2, 8, 8), Clock())
    for generation_id in "abc":
        engine.add(make_request(generation_id, ignore_eos=True))
    engine.step()
    for generation_id in "abc":  # c waits for a place; were it not held, it would get one of theirs
        engine.hold(generation_id, True)
    assert not engine.has_work
    for generation_id in ("a", "b", "c", "unknown"):
        engine.cancel(generation_id)
    assert engine.has_work
    finishes = [event for event in engine.step() if isinstance(event, FinishEvent)]
    assert [(event.generation_id, event.reason) for event in finishes] == [
        (generation_id, FinishReason.CANCELLED) for generation_id in "abc"
    ]
    assert engine.kv_blocks_free == 64


def test_a_dropped_generation_leaves_no_event() -> None:
    """Blocks are free at once."""
    engine = make_engine()
    engine.add(make_request("a", ignore_eos=True))
    engine.step()
    engine.drop("a")
    engine.drop("a")
    assert engine.kv_blocks_free == 64
    assert engine.step() == []
    engine.add(make_request("a"))  # its lease may come back


def test_a_held_generation_goes_on_where_it_was() -> None:
    """Same tokens as without the hold; it keeps its blocks meanwhile."""
    request = make_request(ignore_eos=True)
    engine = make_engine()
    engine.add(request)
    outcomes: dict[str, Outcome] = {}
    for _ in range(5):
        collect(engine.step(), outcomes)
    free = engine.kv_blocks_free
    engine.hold("g", True)
    assert not engine.has_work
    assert engine.step() == []
    assert engine.kv_blocks_free == free < 64
    engine.hold("g", False)
    for _ in range(MAX_STEPS):
        if not engine.has_work:
            break
        collect(engine.step(), outcomes)
    assert outcomes["g"] == run_alone(request)


# --- what is refused


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (make_request(prompt_ids=[]), "no token"),
        (make_request(prompt_ids=[VOCAB_SIZE]), "outside the vocabulary"),
        (make_request(prompt_ids=[-1]), "outside the vocabulary"),
        (make_request(prompt_ids=[BOS_ID] * 110, max_new_tokens=19), "129 tokens; the context is 128"),
        (make_request(prompt_ids=[BOS_ID] * 50, max_new_tokens=15), "65 tokens; the KV cache holds 64"),
        (make_request(max_new_tokens=1, output_ids=[5, 5]), "2 tokens are in the log"),
        (make_request(output_ids=[5, EOS_ID, 5]), "ended with EOS at token 1"),
    ],
)
def test_a_request_that_can_never_run_is_refused(request_: GenerationRequest, message: str) -> None:
    """With the fact and the bound; the engine is as before."""
    engine = make_engine(FakeModel(num_blocks=16))
    engine.add(make_request("other"))
    with pytest.raises(RequestRefused, match=message):
        engine.add(request_)
    assert list(drain(engine)) == ["other"]


def test_the_same_generation_is_not_taken_twice() -> None:
    """Two sequences of one id would mix their tokens."""
    engine = make_engine()
    engine.add(make_request())
    with pytest.raises(RequestRefused, match="already"):
        engine.add(make_request())


def test_a_request_that_just_fits_completes() -> None:
    """Prompt and max_new_tokens fill context and pool to the last position."""
    model = FakeModel(num_blocks=8, max_context=32)
    outcome = run_alone(make_request(prompt_ids=[BOS_ID] * 12, max_new_tokens=20, ignore_eos=True), model)
    assert len(outcome.tokens) == 20


# --- isolation


def test_a_crash_of_one_sequence_fails_only_that_one() -> None:
    """Each slice is run again alone, once; the others' tokens are those they have alone."""
    crash_id = byte_ids("!")[0]
    model = FakeModel(crash_id=crash_id)
    engine = make_engine(model)
    good = [make_request(f"good{i}", [BOS_ID, 5 + i], sampling=replace(SAMPLED, seed=i)) for i in range(3)]
    bad = make_request("bad", [BOS_ID, crash_id, 9])
    for request in (good[0], bad, *good[1:]):
        engine.add(request)
    outcomes = drain(engine)
    for request in good:
        assert outcomes[request.generation_id] == run_alone(request)
    assert outcomes["bad"].finish == FinishEvent(
        "bad", 0, FinishReason.FAILED, None, "", "RuntimeError: the fake device ran out of memory"
    )
    assert [len(batch) for batch in model.batches[:6]] == [4, 1, 1, 1, 1, 3]


def test_logits_that_are_not_finite_fail_only_their_row() -> None:
    """Greedy and sampled alike."""
    nan_id = byte_ids("!")[0]
    engine = make_engine(FakeModel(nan_id=nan_id))
    engine.add(make_request("good"))
    engine.add(make_request("bad", [nan_id]))
    engine.add(make_request("bad-greedy", [nan_id], sampling=GREEDY))
    outcomes = drain(engine)
    assert outcomes["good"] == run_alone(make_request("good"))
    for generation_id in ("bad", "bad-greedy"):
        finish = outcomes[generation_id].finish
        assert finish is not None
        assert (finish.reason, finish.error) == (FinishReason.FAILED, "the logits are not finite")


def test_a_model_that_gives_too_few_rows_fails_its_sequences() -> None:
    """Rather than giving one sequence another's token."""

    class Short(FakeModel):
        def forward(self, slices: Sequence[SequenceSlice]) -> torch.Tensor:
            return super().forward(slices)[:-1]

    engine = make_engine(Short())
    engine.add(make_request("a"))
    engine.add(make_request("b"))
    outcomes = drain(engine)
    for generation_id in "ab":
        finish = outcomes[generation_id].finish
        assert finish is not None
        assert finish.error == "ValueError: the model gave 0 rows of logits, not 1"


def test_a_lost_device_is_no_generation_s_fault() -> None:
    """The error leaves the step: the process has to end, and another worker continues."""

    class Lost(FakeModel):
        def forward(self, slices: Sequence[SequenceSlice]) -> torch.Tensor:
            raise torch.AcceleratorError("an illegal memory access was encountered")

    engine = make_engine(Lost())
    engine.add(make_request("a"))
    with pytest.raises(torch.AcceleratorError):
        engine.step()
