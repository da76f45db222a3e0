"""A worker's log of several choices: interleaved, each end with its last token; another worker goes on with all."""

import dataclasses

from contract.broker import Broker
from contract.messages import ChoiceEnd, EndReason, Job, JobSampling, TokenRow
from tests.until import until
from tests.worker.engine_double import EngineDouble, Gate, expected_ids
from tests.worker.rig import finished, has_tokens, local_worker, make_job, submit
from tests.worker.test_serve import cut_log
from worker.attempt import MAX_ROW_TOKENS

SAMPLING = JobSampling(temperature=0.0, top_k=0, top_p=1.0, seed=7, n=3)
ENDS = (ChoiceEnd(0, "LENGTH", 9), ChoiceEnd(1, "LENGTH", 8), ChoiceEnd(2, "LENGTH", 7))


def three() -> Job:
    """Choices of 9, 8 and 7 tokens."""
    return make_job([5], 9, sampling=SAMPLING)


async def assert_whole(broker: Broker, generation_id: str) -> None:
    """Every choice has its tokens and its end, and the ends came as early as they could."""
    logged = await finished(broker, generation_id)
    assert logged.choices == [expected_ids([5], 9 - choice, choice) for choice in range(3)]
    assert logged.ending is not None
    assert logged.ending.reason is EndReason.DONE
    assert logged.ending.choice_ends == ENDS


async def test_choices_interleave_and_end_by_themselves(broker: Broker) -> None:
    """The row with a choice's last token says that it has ended; the last one's end closes the log."""
    gate = Gate(7)
    async with local_worker(broker, EngineDouble(gate)):
        generation_id = await submit(broker, three())
        await until(lambda: has_tokens(broker, generation_id, 21))
        gate.allow(1)
        await until(lambda: has_tokens(broker, generation_id, 23))
        gate.open()
        await assert_whole(broker, generation_id)

    rows = [entry for entry in await broker.read_log(generation_id) if isinstance(entry, TokenRow)]
    told = {end.choice: row.end for row in rows for end in row.choice_ends}
    assert told == {2: 21, 1: 23}


async def test_another_worker_goes_on_with_all_choices(broker: Broker) -> None:
    """Handed back in the middle, once before and once after a choice has ended."""
    for num_steps, num_tokens in ((3, 9), (8, 23)):
        gate = Gate(num_steps)
        async with local_worker(broker, EngineDouble(gate)) as leaving:
            generation_id = await submit(broker, three())
            await until(lambda: has_tokens(broker, generation_id, num_tokens))  # noqa: B023  awaited at once
            leaving.stop.set()
            gate.open()
            await leaving.serving
        async with local_worker(broker):
            await assert_whole(broker, generation_id)


async def test_a_log_that_lost_its_tail_gets_choices_and_ends_again(broker: Broker, redis_url: str) -> None:
    """The lost row had told that a choice ended: it is told again."""
    gate = Gate(6)
    async with local_worker(broker, EngineDouble(gate)):
        generation_id = await submit(broker, three())
        await until(lambda: has_tokens(broker, generation_id, 18))
        gate.allow(1)
        await until(lambda: has_tokens(broker, generation_id, 21))
        await cut_log(redis_url, generation_id, 18)
        gate.allow(1)
        await until(lambda: has_tokens(broker, generation_id, 23))
        rows = [entry for entry in await broker.read_log(generation_id) if isinstance(entry, TokenRow)]
        assert {end.choice for row in rows for end in row.choice_ends} == {1, 2}
        gate.open()
        await assert_whole(broker, generation_id)


async def test_a_cancel_keeps_the_ends_that_were(broker: Broker) -> None:
    """Choice 2 had ended; of the others those end with CANCELLED that the cancel finds running."""
    gate = Gate(7)
    async with local_worker(broker, EngineDouble(gate)):
        generation_id = await submit(broker, three())
        await until(lambda: has_tokens(broker, generation_id, 21))
        await broker.cancel(generation_id, caller="anonymous")
        gate.open()
        logged = await finished(broker, generation_id)

    assert logged.ending is not None
    reasons = [end.reason for end in logged.ending.choice_ends]
    assert reasons[2] == "LENGTH"
    assert logged.ending.reason is (EndReason.CANCELLED if "CANCELLED" in reasons else EndReason.DONE)
    counts = [len(choice) for choice in logged.choices]
    assert [end.num_tokens for end in logged.ending.choice_ends] == counts


async def test_a_long_echo_comes_in_rows_of_bounded_size(broker: Broker) -> None:
    """No message that carries a row can grow beyond what clients take; the end waits for the last one."""
    prompt_ids = tuple(10 + n % 900 for n in range(2000))
    generation_id = await submit(broker, dataclasses.replace(three(), prompt_ids=prompt_ids, echo=True))
    async with local_worker(broker):
        logged = await finished(broker, generation_id)

    assert logged.choices == [[*prompt_ids, *expected_ids(prompt_ids, 9 - choice, choice)] for choice in range(3)]
    rows = [entry for entry in await broker.read_log(generation_id) if isinstance(entry, TokenRow)]
    assert max(row.end - row.t0 for row in rows) <= MAX_ROW_TOKENS
    assert len(rows) > 5


async def test_an_echo_comes_first_for_every_choice(broker: Broker) -> None:
    """The prompt of choice 0, of choice 1, of choice 2, then what is generated; whole even if handed back in it."""
    job = dataclasses.replace(three(), prompt_ids=(5, 6, 7), echo=True)
    generation_id = await submit(broker, job)
    async with local_worker(broker):
        logged = await finished(broker, generation_id)

    assert logged.ids[:9] == [5, 6, 7] * 3
    assert logged.choices == [[5, 6, 7, *expected_ids([5, 6, 7], 9 - choice, choice)] for choice in range(3)]
    assert logged.ending is not None
    assert [end.num_tokens for end in logged.ending.choice_ends] == [12, 11, 10]
    assert logged.text.startswith("5 6 7 " * 3)
