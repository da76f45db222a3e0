"""A whole log read at once is read by the page, with a turn for others between two; no token twice, none missing."""

from collections.abc import Sequence
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from contract.broker import Broker
from contract.errors import LogBehind
from contract.log_pages import PAGE_BYTES, LogPage, LogPlace
from contract.messages import (
    CHAIN_START,
    AttemptMark,
    ChoiceEnd,
    Ending,
    EndReason,
    LogEntry,
    LoggedToken,
    Times,
    TokenRow,
    encode_tokens,
)
from llamaherd.v1 import common_pb2, generation_pb2
from service.log_walk import walk_log
from tests.service.gateways import RunningGateway
from tests.service.scripted_worker import ScriptedWorker, Work
from tests.service.talks import Talk, handle_of, next_work

SPEC = common_pb2.GenerationSpec(model="chat", prompt="hello")
END = Ending(8, EndReason.DONE, (ChoiceEnd(0, "EOS", 8),), 1, Times(1, 2, 3, 4, 5))


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch, gateway: RunningGateway) -> list[int]:
    """The bytes of each page that is read, which is given when others were served; the whole log at once never is."""
    sizes: list[int] = []
    others = health_pb2_grpc.HealthStub(gateway.channel)
    own = Broker.read_log_page

    async def read_log_page(broker: Broker, generation_id: str, place: LogPlace) -> LogPage:
        page = await own(broker, generation_id, place)
        await others.Check(health_pb2.HealthCheckRequest(), timeout=30)
        sizes.append(sum(len(entry.body) for entry in page.entries if isinstance(entry, TokenRow)))
        return page

    monkeypatch.setattr(Broker, "read_log_page", read_log_page)
    monkeypatch.delattr(Broker, "read_log")
    return sizes


async def say_much(work: Work) -> None:
    """A megabyte."""
    for n in range(100):
        await work.say(*(f"{n}.{m} ".ljust(500, ".") for m in range(20)))
    await work.finish()


async def test_get_and_complete_read_by_the_page(
    gateway: RunningGateway, worker: ScriptedWorker, pages: list[int]
) -> None:
    """What they answer is the same."""
    request = generation_pb2.SubmitGenerationRequest(spec=SPEC, request_id="much")
    generation_id = (await gateway.stub.SubmitGeneration(request)).accepted.generation_id
    work = await worker.take(generation_id)
    await say_much(work)

    calls: list[tuple[Any, Any]] = [
        (gateway.stub.GetGeneration, generation_pb2.GetGenerationRequest(generation_id=generation_id)),
        (gateway.stub.Complete, generation_pb2.CompleteRequest(spec=SPEC, request_id="much")),
    ]
    for method, asked in calls:
        pages.clear()
        answer = await method(asked)
        assert answer.choices[0].text == work.text
        assert [token.text for token in answer.choices[0].tokens] == [token.text for token in work.tokens]
        assert answer.choices[0].finished.num_tokens == answer.usage.output_tokens == 2000
        assert len(pages) > 3
        assert max(pages) < 2 * PAGE_BYTES


async def test_what_a_turn_said_is_read_by_the_page(
    gateway: RunningGateway, worker: ScriptedWorker, pages: list[int]
) -> None:
    """At its end, from its log."""
    talk = Talk(gateway)
    ready = await talk.setup()
    await talk.say("much, please")
    work = await next_work(worker.broker, worker, ready)
    await say_much(work)
    await talk.event("turn_finished")

    view = await worker.broker.chat.join(handle_of(ready), "anonymous")
    assert view is not None
    assert view.turns[-1].assistant == work.text
    assert len(pages) > 3
    assert max(pages) < 2 * PAGE_BYTES
    talk.call.cancel()


async def test_a_cancel_of_a_finished_generation_reads_only_its_end(
    gateway: RunningGateway, worker: ScriptedWorker, pages: list[int]
) -> None:
    request = generation_pb2.SubmitGenerationRequest(spec=SPEC)
    generation_id = (await gateway.stub.SubmitGeneration(request)).accepted.generation_id
    work = await worker.take(generation_id)
    await work.say("a", "b")
    assert await worker.broker.read_ending(generation_id) is None
    await work.finish()

    answer = await gateway.stub.CancelGeneration(generation_pb2.CancelGenerationRequest(generation_id=generation_id))
    assert answer.reason == common_pb2.FINISH_REASON_EOS
    assert pages == []
    ending = await worker.broker.read_ending(generation_id)
    assert ending is not None
    assert ending.num_tokens == 2


def rows(*sizes: int, start: int = 0, word: str = "w") -> list[TokenRow]:
    """Rows of so many tokens each, with their chain. Tokens at the same place are the same, whatever the rows."""
    chain, made, position = CHAIN_START, [], 0
    for size in (start, *sizes):
        tokens = [LoggedToken(0, n, n, len(word) + n, f"{word}{n}") for n in range(position, position + size)]
        chain0 = chain
        body, chain = encode_tokens(tokens, chain0)
        made.append(TokenRow(position, position + size, chain0, body))
        position += size
    return made[1:]


async def walked(*pages: Sequence[LogEntry]) -> tuple[list[str], Ending | None]:
    """The texts that a log has which shows these pages, and its end."""
    left = list(pages)
    texts: list[str] = []

    async def read_log(generation_id: str, place: LogPlace) -> LogPage:
        page = left.pop(0)
        return LogPage(list(page), LogPlace.at(0).after("1-0", 1) if left else None)

    ending = await walk_log(read_log, "g", lambda tokens, num_bytes, ends: texts.extend(t.text for t in tokens))
    return texts, ending


WORDS = [f"w{n}" for n in range(8)]


async def test_each_token_is_given_once_whatever_rows_it_comes_in() -> None:
    """Also where a tail was lost between two pages, and written again in other rows."""
    assert await walked(rows(3, 5)) == (WORDS, None)
    assert await walked([AttemptMark(0, 1), *rows(3)], [*rows(5, start=3), END]) == (WORDS, END)
    assert await walked(rows(3, 2), [AttemptMark(3, 2), *rows(4, 1, start=3), END]) == (WORDS, END)
    assert await walked([]) == ([], None)


@pytest.mark.parametrize(
    "second",
    [rows(2, start=6), rows(5, start=3, word="other"), rows(6, start=2, word="other"), rows(2, start=1)],
    ids=["a gap", "others follow", "others stood there", "it ends before"],
)
async def test_a_log_that_does_not_go_on_as_it_was_read_is_told(second: list[TokenRow]) -> None:
    """Rather than a text of two halves that never were one."""
    with pytest.raises(LogBehind):
        await walked(rows(3, 2), second)
