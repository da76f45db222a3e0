"""Every field of Sampling through gateway, worker and engine, against transformers' `generate` with the same knobs.

The oracle takes its knobs from the settings that the service echoes, so that these are shown to be the ones used.
Where tokens are drawn, `generate` draws with our random numbers: its own distribution decides what they hit.
"""

from typing import Any

import pytest

from llamaherd.v1 import common_pb2, generation_pb2
from tests.engine.generate_oracle import generate
from tests.knobs.model import DEFAULTS, EOS_IDS
from tests.knobs.rig import FAVOURITES, MODEL, PROMPT, Answer, Herd, as_engine_request, ask, sampling, spec_of

PENALTIES: dict[str, Any] = {"repetition_penalty": 1.4, "frequency_penalty": 0.7, "presence_penalty": 2.0}
GREEDY: list[dict[str, Any]] = [
    {},
    {"logit_bias": FAVOURITES},
    {"logit_bias": FAVOURITES, "repetition_penalty": 1.4},
    {"logit_bias": FAVOURITES, "frequency_penalty": 1.5},
    {"logit_bias": FAVOURITES, "presence_penalty": 3.0},
    {"logit_bias": FAVOURITES, **PENALTIES},
]
SAMPLED: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.4},
    {"temperature": 1.0, "seed": 2**64 - 1},
    {"temperature": 1.0, "top_k": 3},
    {"temperature": 1.0, "top_p": 0.3},
    {"temperature": 1.0, "min_p": 0.4},
    {"temperature": 1.0, "typical_p": 0.2},
    {"temperature": 1.6, "top_k": 60, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.8},
    {"temperature": 1.3, "top_p": 0.9, "typical_p": 0.9, "logit_bias": FAVOURITES, **PENALTIES},
]


def name_of(changes: dict[str, Any]) -> str:
    """The knobs that are turned."""
    return ",".join(changes) or "plain"


def oracle(herd: Herd, answer: Answer, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What transformers makes of the settings that were echoed."""
    return generate(herd.theirs, as_engine_request(answer.settings, EOS_IDS, PROMPT), monkeypatch)


@pytest.mark.parametrize("changes", GREEDY, ids=name_of)
async def test_greedy(herd: Herd, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What bends logits: the bias, each penalty with it, and all at once."""
    answer = await ask(herd, spec_of(sampling(**changes)))

    assert answer.ids == oracle(herd, answer, monkeypatch)
    assert_echoed(answer.settings.sampling, sampling(**changes))


@pytest.mark.parametrize("changes", SAMPLED, ids=name_of)
async def test_three_choices_sampled(herd: Herd, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What shapes a draw, with n = 3, against num_return_sequences=3."""
    asked = sampling(n=3, **changes)
    answer = await ask(herd, spec_of(asked))

    assert answer.ids == oracle(herd, answer, monkeypatch)
    assert_echoed(answer.settings.sampling, asked)


async def test_every_knob_changes_the_answer(herd: Herd) -> None:
    """Or the tests above would show nothing."""
    specs = [spec_of(sampling(**each), max_new_tokens=40) for each in (*GREEDY, *SAMPLED)]
    answers = [(await ask(herd, spec)).ids[0] for spec in specs]
    assert len({tuple(ids) for ids in answers}) == len(answers)


def assert_echoed(used: common_pb2.Sampling, asked: common_pb2.Sampling) -> None:
    """Every scalar is present, and what was asked for is what is used."""
    absent = [each.name for each in used.DESCRIPTOR.fields if each.has_presence and not used.HasField(each.name)]
    assert absent == []
    assert used == asked


async def test_sixteen_choices(herd: Herd, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as may be: streamed, at once and by id, all the same."""
    spec = spec_of(sampling(n=16, temperature=1.0))
    streamed = await ask(herd, spec)
    assert streamed.ids == oracle(herd, streamed, monkeypatch)
    assert len({tuple(ids) for ids in streamed.ids}) == 16

    whole = await herd.gateway.stub.Complete(generation_pb2.CompleteRequest(spec=spec))
    assert [[token.id for token in choice.tokens] for choice in whole.choices] == streamed.ids
    assert [choice.text for choice in whole.choices] == streamed.texts
    kept = await herd.gateway.stub.GetGeneration(
        generation_pb2.GetGenerationRequest(generation_id=streamed.generation_id)
    )
    assert [list(choice.tokens) for choice in kept.choices] == streamed.tokens
    assert [choice.text for choice in kept.choices] == streamed.texts
    assert [choice.finished.choice for choice in kept.choices] == list(range(16))


async def test_absent_fields_are_the_models_own(herd: Herd, monkeypatch: pytest.MonkeyPatch) -> None:
    """generation_config.json has a word on each; a seed is drawn, and a request with all of it repeats the answer."""
    asked = common_pb2.GenerationSpec(model=MODEL, token_ids=common_pb2.TokenIds(ids=PROMPT))
    answer = await ask(herd, asked)
    used = answer.settings
    for name, value in DEFAULTS.items():
        if name not in ("do_sample", "max_new_tokens"):
            assert getattr(used.sampling, name) == pytest.approx(value), name
    assert used.stopping.max_new_tokens == DEFAULTS["max_new_tokens"]
    assert answer.ids == oracle(herd, answer, monkeypatch)

    repeated = await ask(herd, spec_of(used.sampling, max_new_tokens=used.stopping.max_new_tokens))
    assert repeated.ids == answer.ids
    other = await ask(herd, asked)
    assert other.settings.sampling.seed != used.sampling.seed


async def test_one_field_of_ones_own_leaves_the_others(herd: Herd) -> None:
    """Each field is taken by itself."""
    spec = spec_of(common_pb2.Sampling(min_p=0.25))
    used = (await ask(herd, spec)).settings.sampling
    assert used.min_p == 0.25
    assert used.repetition_penalty == pytest.approx(DEFAULTS["repetition_penalty"])
