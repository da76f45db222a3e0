"""Every field of Stopping through gateway, worker and engine: where a choice ends, why, and with which text."""

import pytest

from tests.engine.generate_oracle import generate
from tests.knobs.model import EOS_IDS
from tests.knobs.rig import PROMPT, Herd, Pace, as_engine_request, ask, sampling, spec_of


@pytest.fixture(scope="session")
async def plain(herd: Herd) -> list[int]:
    """What the model says greedily: 40 tokens."""
    answer = await ask(herd, spec_of(sampling(), max_new_tokens=40))
    assert len(set(answer.ids[0][:16])) == 16, "an id comes twice; the tests below count on the first"
    assert not set(answer.ids[0]) & set(EOS_IDS)
    return answer.ids[0]


async def test_max_new_tokens(herd: Herd, plain: list[int]) -> None:
    """LENGTH after exactly so many."""
    for most in (1, 7):
        answer = await ask(herd, spec_of(sampling(), max_new_tokens=most))
        assert (answer.ids, answer.reasons) == ([plain[:most]], ["LENGTH"])


async def test_max_total_tokens(herd: Herd, plain: list[int]) -> None:
    """Counts the prompt too; the smaller of both bounds is used, and echoed."""
    answer = await ask(herd, spec_of(sampling(), max_new_tokens=9, max_total_tokens=len(PROMPT) + 5))
    assert (answer.ids, answer.reasons) == ([plain[:5]], ["LENGTH"])
    assert answer.settings.stopping.max_new_tokens == 5
    assert answer.settings.stopping.max_total_tokens == len(PROMPT) + 5


@pytest.mark.parametrize("min_new_tokens", [0, 1, 10, 15, 16])
async def test_stop_token_ids_and_min_new_tokens(
    herd: Herd, plain: list[int], min_new_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids that come early by themselves end the choice; before min_new_tokens others come instead."""
    stops = [plain[9], plain[4]]
    answer = await ask(herd, spec_of(sampling(), stop_token_ids=stops, min_new_tokens=min_new_tokens))

    theirs = generate(herd.theirs, as_engine_request(answer.settings, EOS_IDS, PROMPT), monkeypatch)
    assert answer.ids == theirs
    assert len(answer.ids[0]) >= min_new_tokens
    ends_by_id = answer.ids[0][-1] in stops
    assert answer.reasons == ["STOP_TOKEN" if ends_by_id else "LENGTH"]
    assert answer.settings.stopping.stop_token_ids == stops
    assert answer.settings.stopping.min_new_tokens == min_new_tokens


async def test_eos_and_ignore_eos(herd: Herd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bias makes an EOS of the model likely: the choice ends there, or goes on if it is to be ignored."""
    chosen = sampling(logit_bias={EOS_IDS[1]: 100})
    ended = await ask(herd, spec_of(chosen))
    assert (ended.ids, ended.reasons) == ([[EOS_IDS[1]]], ["EOS"])
    assert ended.texts == [""]

    waited = await ask(herd, spec_of(chosen, min_new_tokens=3))
    assert waited.ids == generate(herd.theirs, as_engine_request(waited.settings, EOS_IDS, PROMPT), monkeypatch)
    assert (len(waited.ids[0]), waited.reasons) == (4, ["EOS"])

    ignored = await ask(herd, spec_of(chosen, ignore_eos=True))
    assert (ignored.ids, ignored.reasons) == ([[EOS_IDS[1]] * 16], ["LENGTH"])
    assert ignored.settings.stopping.ignore_eos


async def test_stop_strings(herd: Herd, plain: list[int]) -> None:
    """The text ends before the first stop string, wherever tokens begin and end; which one it was is told."""
    whole = (await ask(herd, spec_of(sampling(), max_new_tokens=40))).texts[0]
    assert len(whole) > 60
    for start in range(5, 50, 3):
        stop = whole[start : start + 4]
        answer = await ask(herd, spec_of(sampling(), max_new_tokens=40, stop_strings=[stop, "never said"]))
        assert answer.texts == [whole[: whole.index(stop)]]
        assert answer.reasons == ["STOP_STRING"]
        assert answer.ends[0].stop_string == stop
        assert answer.ids[0] == plain[: len(answer.ids[0])]


async def test_stop_strings_of_several_choices(herd: Herd) -> None:
    """Each ends by itself; the others go on."""
    chosen = sampling(n=3, temperature=1.0)
    whole = await ask(herd, spec_of(chosen))
    stop = whole.texts[1][6:9]
    answer = await ask(herd, spec_of(chosen, stop_strings=[stop]))
    assert answer.texts == [text.partition(stop)[0] for text in whole.texts]
    assert answer.reasons == [
        "STOP_STRING" if stop in text else reason for text, reason in zip(whole.texts, whole.reasons, strict=True)
    ]


async def test_max_time_ms(herd: Herd, pace: Pace) -> None:
    """Every running choice ends with TIME_LIMIT, the stream with OK; what was held back comes with the end."""
    pace.step_s = 0.1
    chosen = sampling(n=2, temperature=1.0)
    answer = await ask(herd, spec_of(chosen, max_new_tokens=400, max_time_ms=2000, ignore_eos=True))

    assert answer.reasons == ["TIME_LIMIT", "TIME_LIMIT"]
    assert answer.completed is not None
    assert answer.completed.timings.total_ms >= 2000
    assert all(len(ids) < 400 for ids in answer.ids)
