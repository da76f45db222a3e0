"""The engine on a small random Llama against transformers' `generate` with the same knobs: the same ids, end to end.

Where tokens are drawn, `generate` draws with our random numbers: its own distribution decides what they hit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.engine_driver import Clock, Outcome, collect, name_of
from tests.engine.generate_oracle import generate
from tests.engine.oracle import Shape, random_prompts
from worker.engine.batch import ForwardModel
from worker.engine.config import Quantization
from worker.engine.detokenizer import TokenPieces
from worker.engine.engine import Engine, EngineSettings
from worker.engine.loader import load_model
from worker.engine.sequence import (
    FinishReason,
    GenerationRequest,
    SamplingParams,
    StoppingParams,
    TokenEvent,
)

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_NEW = 16
GREEDY = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, seed=0)
SAMPLED = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, seed=1234)
# A random model hardly ever repeats itself; with a dozen favourites it does, and penalties show.
BIAS = (*((token_id, 6.0) for token_id in range(10, 22)), (40, -100.0), (300, 1.5))
PENALTIES: dict[str, Any] = {"repetition_penalty": 1.4, "frequency_penalty": 0.7, "presence_penalty": 2.0}


@dataclass(frozen=True, slots=True)
class Pair:
    """One folder, loaded by us and by transformers, in float32 on the CPU."""

    ours: ForwardModel
    theirs: Any
    prompt: tuple[int, ...]
    pieces: TokenPieces


@pytest.fixture(scope="module")
def pair(full_folder: Path, shape: Shape) -> Pair:
    """The prompt is two full blocks and a bit."""
    from transformers import LlamaForCausalLM

    pieces = TokenPieces(tuple(f"{token_id} ".encode() for token_id in range(shape.vocab_size)), frozenset())
    return Pair(
        load_model(full_folder, Quantization.NONE, torch.device("cpu"), kv_blocks=64),
        LlamaForCausalLM.from_pretrained(full_folder, dtype=torch.float32).eval(),
        tuple(random_prompts(shape.vocab_size, [37], seed=9)[0]),
        pieces,
    )


def request_for(
    pair: Pair,
    sampling: SamplingParams,
    *,
    eos_token_ids: Sequence[int] = (),
    stop_token_ids: Sequence[int] = (),
    min_new_tokens: int = 0,
    num_choices: int = 1,
) -> GenerationRequest:
    """A request that ends by an id or after NUM_NEW tokens, with five alternatives for each token."""
    stopping = StoppingParams(
        NUM_NEW, (), tuple(eos_token_ids), stop_token_ids=tuple(stop_token_ids), min_new_tokens=min_new_tokens
    )
    return GenerationRequest("g", pair.prompt, sampling, stopping, num_choices=num_choices, num_top_logprobs=5)


def run(pair: Pair, *requests: GenerationRequest) -> tuple[dict[str, Outcome], list[tuple[int, int]]]:
    """All requests together in one engine: their outcomes, and the first one's log."""
    settings = EngineSettings(max_sequences=8, max_step_tokens=64, prefill_chunk=16)
    engine = Engine(pair.ours, pair.pieces, settings, Clock())
    for request in requests:
        engine.add(request)
    outcomes: dict[str, Outcome] = {}
    log: list[tuple[int, int]] = []
    while engine.has_work:
        events = engine.step()
        engine.check()
        collect(events, outcomes)
        tokens = [event for event in events if isinstance(event, TokenEvent)]
        log += [(event.choice, event.token_id) for event in tokens if event.generation_id == requests[0].generation_id]
    assert engine.kv_blocks_free == pair.ours.num_blocks
    return outcomes, log


def ids_of_choices(pair: Pair, request: GenerationRequest) -> list[list[int]]:
    """The request alone."""
    outcomes, _ = run(pair, request)
    return [outcomes[name_of("g", choice)].token_ids for choice in range(request.num_choices)]


@pytest.mark.parametrize(
    "changes",
    [
        {"logit_bias": ()},
        {},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.6},
        {"frequency_penalty": 1.5},
        {"presence_penalty": 3.0},
        {"presence_penalty": -100.0},
        PENALTIES,
    ],
    ids=lambda changes: ",".join(changes) or "plain",
)
def test_greedy_with_what_bends_logits(pair: Pair, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The bias, each penalty with it, and all at once."""
    request = request_for(pair, replace(GREEDY, **({"logit_bias": BIAS} | changes)))
    assert ids_of_choices(pair, request) == generate(pair.theirs, request, monkeypatch)


def test_what_bends_logits_changes_the_answer(pair: Pair) -> None:
    """Or the test above would show nothing."""
    knobs = [{}, *({name: value} for name, value in PENALTIES.items())]
    biased = replace(GREEDY, logit_bias=BIAS)
    answers = [ids_of_choices(pair, request_for(pair, replace(biased, **each)))[0] for each in knobs]
    answers += ids_of_choices(pair, request_for(pair, GREEDY))
    assert len({tuple(answer) for answer in answers}) == 5


@pytest.mark.parametrize("min_new_tokens", [0, 1, 6, 15, NUM_NEW])
def test_greedy_with_ends_that_must_wait(pair: Pair, min_new_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """EOS and a stop token are ids that come early by themselves; before min_new_tokens others come instead."""
    (plain,) = ids_of_choices(pair, request_for(pair, GREEDY))
    request = request_for(
        pair, GREEDY, eos_token_ids=plain[4:5], stop_token_ids=plain[9:11], min_new_tokens=min_new_tokens
    )
    (ids,) = ids_of_choices(pair, request)
    assert [ids] == generate(pair.theirs, request, monkeypatch)
    assert len(ids) > min_new_tokens or len(ids) == NUM_NEW


def test_an_ignored_eos_is_a_token_like_others(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers without an EOS."""
    (plain,) = ids_of_choices(pair, request_for(pair, GREEDY))
    request = request_for(pair, GREEDY, eos_token_ids=plain[3:8], min_new_tokens=5)
    request = replace(request, stopping=replace(request.stopping, ignore_eos=True))
    assert ids_of_choices(pair, request) == generate(pair.theirs, request, monkeypatch) == [plain]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.05},
        {"typical_p": 0.6},
        {"temperature": 1.6, "top_k": 60, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.8},
        {"temperature": 1.3, "top_p": 0.9, "typical_p": 0.9, "logit_bias": BIAS, **PENALTIES},
    ],
    ids=lambda changes: ",".join(changes) or "plain",
)
def test_three_sampled_choices(pair: Pair, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each knob that shapes the draw, and all of them, with num_return_sequences=3."""
    request = request_for(pair, replace(SAMPLED, **changes), num_choices=3)
    choices = ids_of_choices(pair, request)
    assert choices == generate(pair.theirs, request, monkeypatch)
    assert len({tuple(choice) for choice in choices}) == 3


def test_sampled_choices_that_end_by_themselves(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the vocabulary is EOS, and it has to wait for three tokens."""
    vocab_size = pair.ours.vocab_size
    request = request_for(
        pair, SAMPLED, eos_token_ids=range(0, vocab_size, 4), stop_token_ids=(1,), min_new_tokens=3, num_choices=5
    )
    choices = ids_of_choices(pair, request)
    assert choices == generate(pair.theirs, request, monkeypatch)
    assert len({len(choice) for choice in choices}) > 1
    assert min(len(choice) for choice in choices) > 3


def test_a_mixed_batch_gives_each_its_own(pair: Pair) -> None:
    """Greedy and sampled requests, one choice and several, every knob at its end: all events as alone."""
    knobs: list[dict[str, Any]] = [
        {},
        {"temperature": 0.0},
        {"temperature": 100.0, "min_p": 1.0},
        {"typical_p": 1e-9, "repetition_penalty": 100.0},
        {"temperature": 0.0, "presence_penalty": 100.0, "frequency_penalty": -100.0},
        {"logit_bias": tuple((token_id, -100.0) for token_id in range(1, 500)), "top_p": 0.0},
    ]
    requests = [
        replace(
            request_for(pair, replace(SAMPLED, **each), num_choices=1 + place % 3, min_new_tokens=place),
            generation_id=f"g{place}",
        )
        for place, each in enumerate(knobs)
    ]
    together, _ = run(pair, *requests)
    alone: dict[str, Outcome] = {}
    for request in requests:
        alone |= run(pair, request)[0]
    assert together == alone


def test_a_continuation_from_a_cut_gives_the_same_rest(pair: Pair) -> None:
    """Three choices with every knob: a fresh engine goes on from the log, to the bit."""
    sampling = replace(SAMPLED, temperature=1.3, top_p=0.9, min_p=0.01, typical_p=0.95, logit_bias=BIAS, **PENALTIES)
    request = request_for(
        pair, sampling, eos_token_ids=range(0, pair.ours.vocab_size, 16), min_new_tokens=5, num_choices=3
    )
    whole, log = run(pair, request)
    for cut in range(0, len(log) + 1, 5):
        rest, _ = run(pair, replace(request, logged=tuple(log[:cut])))
        for choice in range(3):
            name = name_of("g", choice)
            num_logged = sum(1 for each, _ in log[:cut] if each == choice)
            assert rest[name].tokens == whole[name].tokens[num_logged:]
            assert rest[name].finish == whole[name].finish


def test_logprobs_are_those_of_transformers_logits(pair: Pair) -> None:
    """Of each token and of the five likeliest, before all that bends and filters."""
    request = request_for(pair, replace(SAMPLED, temperature=0.5, top_k=10, logit_bias=BIAS, **PENALTIES))
    outcome = run(pair, request)[0]["g"]
    assert outcome.finish is not None
    assert outcome.finish.reason is FinishReason.LENGTH
    with torch.inference_mode():
        logits = pair.theirs(torch.tensor([[*pair.prompt, *outcome.token_ids]])).logits[0].double()
    expected = logits[len(pair.prompt) - 1 : -1].log_softmax(-1)
    for row, token in enumerate(outcome.tokens):
        assert token.logprob == pytest.approx(float(expected[row, token.token_id]), abs=1e-4)
        best = expected[row].topk(5)
        assert [top.token_id for top in token.top_logprobs] == best.indices.tolist()
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_prompt_logprobs_are_those_of_transformers_logits(pair: Pair) -> None:
    """Over chunks, beside a request that decodes and three choices that share the prompt; no token changes."""
    plain = request_for(pair, SAMPLED, num_choices=3)
    request = replace(plain, wants_prompt_logprobs=True)
    neighbour = replace(request_for(pair, GREEDY), generation_id="neighbour", prompt_ids=pair.prompt[:3])
    outcomes, _ = run(pair, neighbour, request)
    with torch.inference_mode():
        expected = pair.theirs(torch.tensor([pair.prompt])).logits[0].double().log_softmax(-1)
    assert outcomes["g"].prompt_logprobs is not None
    told = outcomes["g"].prompt_logprobs.tokens
    assert [token.token_id for token in told] == list(pair.prompt[1:])
    for row, token in enumerate(told):
        assert token.logprob == pytest.approx(float(expected[row, token.token_id]), abs=1e-4)
        assert [top.token_id for top in token.top_logprobs] == expected[row].topk(5).indices.tolist()
    without, _ = run(pair, neighbour, plain)
    for name in ("neighbour", "g", "g/1", "g/2"):
        assert outcomes[name].tokens == without[name].tokens
