"""Every field of OutputOptions, and the priority, through gateway, worker and engine."""

import pytest
import redis
import torch

from contract import keys
from contract.broker import Broker
from llamaherd.v1 import common_pb2, generation_pb2
from service.knobs import ALTERNATIVE_LOG_BYTES, TOKEN_LOG_BYTES
from tests.knobs.rig import FAVOURITES, PROMPT, Answer, Herd, ask, sampling, spec_of
from tests.redis_server import RunningServer

Output = common_pb2.OutputOptions
EMPTY_LOG_BYTES = 4096  # the first block of a stream
BENT = sampling(n=3, temperature=0.7, top_k=50, logit_bias=FAVOURITES, repetition_penalty=1.3)


def scores(herd: Herd, ids: list[int]) -> torch.Tensor:
    """[T - 1, V] what transformers' logits say of each place after the first, nothing bent."""
    with torch.inference_mode():
        logits = herd.theirs(torch.tensor([ids])).logits[0].double()
    logprobs: torch.Tensor = logits[:-1].log_softmax(-1)
    return logprobs


def assert_scored(herd: Herd, tokens: list[common_pb2.Token], expected: torch.Tensor, num_top: int) -> None:
    """logprob and top_logprobs are those of `expected`, a row for each token; texts are the ids' own."""
    for token, row in zip(tokens, expected, strict=True):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
        best = row.topk(num_top)
        assert [top.id for top in token.top_logprobs] == best.indices.tolist()
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-4)
        for top in token.top_logprobs:
            assert top.text == own_text(herd, top.id)


def own_text(herd: Herd, id_: int) -> str:
    """The text of an id by itself."""
    piece = herd.bundle.pieces[id_]
    match piece.kind.value:
        case "normal" | "user_defined":
            return piece.text.replace("\u2581", " ")
        case "byte":
            return bytes([int(piece.text[3:5], 16)]).decode(errors="replace")
        case _:
            return ""


async def test_logprobs_are_those_of_the_model(herd: Herd) -> None:
    """Of the chosen token and the five likeliest, in every choice, before all that bends and filters."""
    answer = await ask(herd, spec_of(BENT, output=Output(logprobs=True, top_logprobs=5)))
    for tokens in answer.tokens:
        ids = [*PROMPT, *(token.id for token in tokens)]
        assert_scored(herd, tokens, scores(herd, ids)[len(PROMPT) - 1 :], 5)


async def test_what_was_not_asked_for_is_absent(herd: Herd) -> None:
    """Each of both by itself; neither changes a token."""
    plain = await ask(herd, spec_of(BENT))
    assert not any(token.HasField("logprob") or token.top_logprobs for token in plain.order)
    only = await ask(herd, spec_of(BENT, output=Output(logprobs=True)))
    assert all(token.HasField("logprob") and not token.top_logprobs for token in only.order)
    top = await ask(herd, spec_of(BENT, output=Output(top_logprobs=2)))
    assert all(not token.HasField("logprob") and len(token.top_logprobs) == 2 for token in top.order)
    assert plain.ids == only.ids == top.ids


async def test_an_echo_is_the_prompt_and_then_the_same_answer(herd: Herd) -> None:
    """In every choice; it counts as tokens of the stream, but not as output."""
    plain = await ask(herd, spec_of(BENT))
    echoed = await ask(herd, spec_of(BENT, output=Output(echo=True)))

    assert echoed.ids == [[*PROMPT, *ids] for ids in plain.ids]
    assert [token.choice for token in echoed.order[: 3 * len(PROMPT)]] == [0] * 37 + [1] * 37 + [2] * 37
    heads = ["".join(token.text for token in tokens[: len(PROMPT)]) for tokens in echoed.tokens]
    assert echoed.texts == [head + text for head, text in zip(heads, plain.texts, strict=True)]
    assert plain.completed is not None
    assert echoed.completed is not None
    assert echoed.completed.usage == plain.completed.usage
    assert echoed.settings.output.echo
    assert not any(token.HasField("logprob") or token.top_logprobs for token in echoed.order)


async def test_a_reader_may_come_in_anywhere_in_an_echo(herd: Herd) -> None:
    """From every position of three choices with an echo, Attach gives the rest: an echo is no exception."""
    whole = await ask(herd, spec_of(BENT, prompt_ids=PROMPT[:5], output=Output(echo=True)))
    for position in range(len(whole.order) + 1):
        chain = whole.order[position - 1].chain if position else None
        request = generation_pb2.AttachRequest(generation_id=whole.generation_id, from_position=position, chain=chain)
        messages = [message async for message in herd.gateway.stub.Attach(request)]
        assert [token for message in messages for token in message.tokens] == whole.order[position:]
        assert messages[0].accepted.settings == whole.settings
        ends = [message.choice_finished for message in messages if message.HasField("choice_finished")]
        assert sorted(ends, key=lambda end: end.choice) == sorted(whole.ends, key=lambda end: end.choice)
        assert messages[-1].completed.usage.output_tokens == len(whole.order) - 3 * 5


@pytest.mark.parametrize("text", ["Hello world", " a  b", "naïve 🙂 日本", "x"])
async def test_the_text_of_an_echo_is_the_prompt(herd: Herd, text: str) -> None:
    """To the byte: what the tokenizer added is not there, and what it was given is."""
    spec = spec_of(sampling(), output=Output(echo=True))
    spec.prompt = text
    answer = await herd.gateway.stub.Complete(generation_pb2.CompleteRequest(spec=spec))
    assert answer.choices[0].text.startswith(text)
    num_prompt = answer.usage.prompt_tokens
    assert "".join(token.text for token in answer.choices[0].tokens[:num_prompt]) == text
    assert answer.choices[0].finished.num_tokens == num_prompt + answer.usage.output_tokens


async def test_prompt_logprobs_are_those_of_the_model(herd: Herd) -> None:
    """Of all tokens of the echo but the first, which follows nothing; the answer is the same."""
    plain = await ask(herd, spec_of(BENT))
    output = Output(echo=True, prompt_logprobs=True, logprobs=True, top_logprobs=3)
    answer = await ask(herd, spec_of(BENT, output=output))

    assert answer.ids == [[*PROMPT, *ids] for ids in plain.ids]
    for tokens in answer.tokens:
        assert not tokens[0].HasField("logprob")
        assert not tokens[0].top_logprobs
        assert_scored(herd, tokens[1:], scores(herd, [token.id for token in tokens]), 3)
    assert answer.settings.output == output


async def test_an_echo_of_half_a_character_ends_with_the_echo(herd: Herd) -> None:
    """A prompt of ids may end within a character; the answer's text is the same with it as without."""
    half = [PROMPT[0], 3 + 0xE6, 3 + 0x97]
    plain = await ask(herd, spec_of(sampling(), prompt_ids=half))
    echoed = await ask(herd, spec_of(sampling(), prompt_ids=half, output=Output(echo=True)))
    assert echoed.tokens[0][2].text == "\ufffd"
    assert echoed.texts[0].endswith("\ufffd" + plain.texts[0])


async def test_a_priority_is_a_class_of_the_queue(herd: Herd, valkey: RunningServer) -> None:
    """Each of them is served from its own stream."""
    broker = Broker.connect(valkey.url)
    try:
        for name in common_pb2.Priority.keys():  # noqa: SIM118  no mapping, but an enum
            spec = spec_of(sampling(), max_new_tokens=1)
            spec.MergeFrom(common_pb2.GenerationSpec(priority=name))
            answer: Answer = await ask(herd, spec)
            record = await broker.record(answer.generation_id, caller="anonymous")
            unset = name == "PRIORITY_UNSPECIFIED"
            assert record.job.job_class == ("normal" if unset else name.removeprefix("PRIORITY_").lower())
            assert record.job.job_class in keys.CLASSES
    finally:
        await broker.close()


async def test_the_bound_of_a_log_is_one(herd: Herd, valkey: RunningServer) -> None:
    """What admission counts for a token and for an alternative is no less than what they take in Redis."""
    for n, num_top in ((1, 0), (1, 20), (16, 0), (16, 20)):
        output = Output(logprobs=True, top_logprobs=num_top, echo=n > 1, prompt_logprobs=n > 1)
        answer = await ask(
            herd, spec_of(sampling(n=n, temperature=1.0), max_new_tokens=150, ignore_eos=True, output=output)
        )
        with redis.Redis.from_url(valkey.url) as client:
            size = client.memory_usage(keys.log(answer.generation_id), samples=0)
        assert isinstance(size, int)
        assert size - EMPTY_LOG_BYTES <= len(answer.order) * (TOKEN_LOG_BYTES + num_top * ALTERNATIVE_LOG_BYTES)
