"""A worker goes on from a log that was cut anywhere: the same rest, with every knob and several choices.

The log is read, the engine is fresh, and nothing but the job and the logged tokens tells it what was.
"""

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from contract import keys
from contract.broker import Broker, Standing, State, StepRow, Taken, new_lease
from contract.messages import (
    CHAIN_START,
    Ending,
    Job,
    JobSampling,
    JobStopping,
    TokenRow,
    decode_tokens,
    encode_tokens,
    to_logged,
)
from llamaherd.v1 import common_pb2
from tests.knobs.model import EOS_IDS
from tests.knobs.rig import FAVOURITES, PROMPT, PacedEngine, load_engine, working
from tests.redis_server import RunningServer
from tests.until import until
from tests.worker.engine_double import Gate
from tests.worker.rig import has_tokens
from tests.worker.test_serve import cut_log
from worker.served import Served

MODEL = "continued"
GATEWAY = "0" * 32
FIRST = "first-worker"
BIAS = tuple(sorted(FAVOURITES.items()))
NOTHING = JobSampling(temperature=0.0, top_k=0, top_p=1.0, seed=7)
PENALIZED = dataclasses.replace(
    NOTHING, logit_bias=BIAS, repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=1.5
)
BYTES = tuple((3 + byte, 9.0) for byte in (0xE6, 0x97, 0xA5, 0xF0, 0x9F, 0x99, 0x82, 0x41))


def make_job(sampling: JobSampling, stopping: JobStopping, **output: bool | int) -> Job:
    """A job of the continued model."""
    return Job(
        generation_id=keys.new_generation_id(),
        model=MODEL,
        job_class="normal",
        prompt_ids=PROMPT,
        sampling=sampling,
        stopping=stopping,
        strip_leading_space=True,
        **output,  # type: ignore[arg-type]  # each case gives what its field takes
    )


def of_twelve(**stopping: int | bool | tuple[int, ...] | tuple[str, ...]) -> JobStopping:
    """Twelve tokens at most."""
    return JobStopping(max_new_tokens=12, max_time_ms=600_000, **stopping)  # type: ignore[arg-type]


DRAWN = dataclasses.replace(PENALIZED, temperature=1.2, top_k=200, top_p=0.95, min_p=0.001, typical_p=0.98, n=3)
CASES = {
    "penalties": make_job(PENALIZED, of_twelve()),
    "draws, penalties, n=3": make_job(DRAWN, of_twelve(ignore_eos=True)),
    "stop strings in bytes, n=3": make_job(
        dataclasses.replace(DRAWN, logit_bias=BYTES),
        of_twelve(stop_strings=("AA", "\ufffdA\ufffd", "日本")),
        logprobs=True,
    ),
    "min_new_tokens and stop ids, n=3": make_job(
        dataclasses.replace(DRAWN, logit_bias=tuple((id_, 9.0) for id_ in (50, 51, EOS_IDS[1]))),
        of_twelve(min_new_tokens=5, stop_token_ids=(50,)),
    ),
    "echo and all logprobs, n=3": make_job(
        dataclasses.replace(DRAWN, seed=11),
        JobStopping(max_new_tokens=4, max_time_ms=600_000),
        echo=True,
        prompt_logprobs=True,
        logprobs=True,
        top_logprobs=3,
    ),
}


@pytest.fixture(scope="session")
def another(folder: Path) -> Served:
    """The model once more, with an engine and a cache of its own."""
    return load_engine(folder)


@dataclasses.dataclass(frozen=True, slots=True)
class Log:
    """What a generation left behind."""

    tokens: list[common_pb2.Token]
    ending: Ending


async def submit(broker: Broker, job: Job) -> str:
    """As a gateway does."""
    await broker.submit(job, caller="anonymous", digest="d", gateway_id=GATEWAY, max_waiting=1000, window_ms=600_000)
    return job.generation_id


async def read(broker: Broker, generation_id: str) -> Log:
    """The log, once it is closed."""

    async def is_finished() -> bool:
        (standing,) = await broker.standings([generation_id])
        return isinstance(standing, Standing) and standing.state is State.FINISHED

    await until(is_finished, 120.0, what=f"{generation_id} ends")
    entries = await broker.read_log(generation_id)
    tokens = [token for entry in entries if isinstance(entry, TokenRow) for token in decode_tokens(entry.body)]
    (ending,) = [entry for entry in entries if isinstance(entry, Ending)]
    return Log(tokens, ending)


async def leave_at(broker: Broker, job: Job, *rows: Sequence[common_pb2.Token]) -> str:
    """A worker takes the job, logs these tokens, row by row, and hands it back."""
    generation_id = await submit(broker, job)
    (entry,) = await broker.read_jobs(FIRST, MODEL, "normal", count=1, block_ms=1000)
    lease = new_lease()
    assert isinstance(await broker.take(entry, worker_id=FIRST, lease=lease), Taken)
    start, chain0 = 0, CHAIN_START
    for tokens in filter(None, rows):
        body, chain1 = encode_tokens([to_logged(token) for token in tokens], chain0)
        await broker.step([StepRow(generation_id, lease, start, len(tokens), chain0, chain1, body)])
        start, chain0 = start + len(tokens), chain1
    assert await broker.release(entry, worker_id=FIRST, lease=lease)
    return generation_id


@pytest.mark.parametrize("name", CASES)
async def test_the_rest_is_the_same_from_every_cut(valkey: RunningServer, another: Served, name: str) -> None:
    """Tokens, texts, logprobs and ends, for a log of 0, 1, 2 ... tokens; of several choices each has its own."""
    job = CASES[name]
    broker = Broker.connect(valkey.url)
    try:
        async with working(valkey.url, another, MODEL):
            whole = await read(broker, await submit(broker, job))
        num_tokens = len(whole.tokens)
        cuts = [dataclasses.replace(job, generation_id=keys.new_generation_id()) for _ in range(num_tokens + 1)]
        for cut, each in enumerate(cuts):
            await leave_at(broker, each, whole.tokens[:cut])
        async with working(valkey.url, another, MODEL):
            logs = await asyncio.gather(*(read(broker, each.generation_id) for each in cuts))
    finally:
        await broker.close()

    assert num_tokens > 9
    for cut, log in enumerate(logs):
        assert by_choice(log.tokens) == by_choice(whole.tokens), f"cut at {cut}"
        assert log.ending.choice_ends == whole.ending.choice_ends, f"cut at {cut}"
        assert log.ending.attempts == 2


async def test_a_lost_tail_gets_an_earlier_workers_tokens_again(valkey: RunningServer, another: Served) -> None:
    """The log went back behind where this worker began: it appends all that it had read there, alternatives too."""
    case = dataclasses.replace(CASES["draws, penalties, n=3"], logprobs=True, top_logprobs=4)
    job, lossy = (dataclasses.replace(case, generation_id=keys.new_generation_id()) for _ in range(2))
    broker, gate = Broker.connect(valkey.url), Gate(0)
    try:
        async with working(valkey.url, another, MODEL):
            whole = await read(broker, await submit(broker, job))
        await leave_at(broker, lossy, whole.tokens[:3], whole.tokens[3:9])
        async with working(valkey.url, dataclasses.replace(another, engine=PacedEngine(another.engine, gate)), MODEL):
            try:
                gate.allow(1)
                await until(lambda: has_tokens(broker, lossy.generation_id, 10))
                await cut_log(valkey.url, lossy.generation_id, 3)
            finally:
                gate.open()
            log = await read(broker, lossy.generation_id)
    finally:
        await broker.close()

    assert by_choice(log.tokens) == by_choice(whole.tokens)
    assert all(len(token.top_logprobs) == 4 for token in log.tokens)


def by_choice(tokens: Sequence[common_pb2.Token]) -> list[list[tuple[object, ...]]]:
    """All that a token says but its place among those of other choices: that depends on who came first."""
    choices: list[list[tuple[object, ...]]] = [[], [], []]
    for token in tokens:
        tops = [(each.id, each.logprob, each.text) for each in token.top_logprobs]
        logprob = token.logprob if token.HasField("logprob") else None
        assert token.index == len(choices[token.choice])
        choices[token.choice].append((token.id, token.text, logprob, tops))
    return choices


async def test_the_cases_end_in_every_way(valkey: RunningServer, another: Served) -> None:
    """And a stop string, a character and an end by id lie across their cuts, or the test above would show little."""
    broker = Broker.connect(valkey.url)
    try:
        fresh = [dataclasses.replace(job, generation_id=keys.new_generation_id()) for job in CASES.values()]
        async with working(valkey.url, another, MODEL):
            logs = [await read(broker, await submit(broker, job)) for job in fresh]
    finally:
        await broker.close()

    reasons = {end.reason for log in logs for end in log.ending.choice_ends}
    assert reasons == {"LENGTH", "STOP_STRING", "STOP_TOKEN", "EOS"}
    tokens = [token for log in logs for token in log.tokens]
    assert any(len(token.text) > 1 and not token.text.isascii() for token in tokens), "no character is pieced together"
    assert any(token.text == "" and token.id not in EOS_IDS for token in tokens), "no text is held back"
