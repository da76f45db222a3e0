"""Workers with the real engine and the demo model die, freeze and drain; Redis restarts. The log shows nothing of it.

Each test compares with what the engine alone makes of the same job, undisturbed.
"""

import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import redis.asyncio

from contract import keys
from contract.broker import Broker
from contract.messages import Job, JobSampling
from tests.redis_server import RunningServer
from tests.until import until
from tests.worker.rig import beat_of, finished, has_tokens, is_ready, make_job, submit, worker_process
from worker.engine.sequence import GenerationRequest, SamplingParams, StoppingParams, TokenEvent
from worker.load import load
from worker.progress import Progress
from worker.served import Served
from worker.settings import WorkerSettings

DEMO_MODEL = Path(__file__).parents[2] / "herd" / "demo_model"
MODEL = "demo"
NUM_TOKENS = 300
NUM_JOBS = 4
VARIABLES = {
    "HERD_WORKER_MODEL_PATH": str(DEMO_MODEL),
    "HERD_WORKER_MODEL_NAME": MODEL,
    "HERD_WORKER_DEVICE": "cpu",
    "HERD_WORKER_THREADS": "1",
    "HERD_WORKER_KV_CACHE_BYTES": str(64 << 20),
    "HERD_WORKER_DRAIN_TIMEOUT_S": "0",
    "HERD_WORKER_MAX_SEQUENCES": "3",
}


@dataclass(frozen=True, slots=True)
class Case:
    """A job and what it makes when nothing happens."""

    job: Job
    ids: list[int]
    text: str


@pytest.fixture(scope="session")
def alone() -> Served:
    """The demo model and its engine, in this process."""
    progress, fd = Progress.create()
    os.close(fd)
    settings = WorkerSettings(model_path=DEMO_MODEL, model_name=MODEL, device="cpu", threads=1, kv_cache_bytes=64 << 20)
    return load(settings, progress)


def run_alone(served: Served, job: Job) -> tuple[list[int], str]:
    """The job's tokens and text by the engine alone."""
    sampling = SamplingParams(job.sampling.temperature, job.sampling.top_k, job.sampling.top_p, job.sampling.seed)
    stopping = StoppingParams(job.stopping.max_new_tokens, (), served.bundle.eos_ids)
    request = GenerationRequest("alone", job.prompt_ids, sampling, stopping, strip_leading_space=False)
    served.engine.add(request)
    tokens: list[TokenEvent] = []
    while served.engine.has_work:
        tokens += [each for each in served.engine.step() if isinstance(each, TokenEvent)]
    return [each.token_id for each in tokens], "".join(each.text for each in tokens)


def make_case(served: Served, number: int) -> Case:
    """A job that runs to NUM_TOKENS: almost flat sampling, and the first seed that draws no end on the way."""
    prompt = (1, *range(300 + 10 * number, 305 + 10 * number))
    for seed in range(1000 * number, 1000 * number + 100):
        sampling = JobSampling(temperature=20.0, top_k=1000, top_p=1.0, seed=seed)
        job = make_job(prompt, NUM_TOKENS, model=MODEL, sampling=sampling)
        ids, text = run_alone(served, job)
        if len(ids) == NUM_TOKENS:
            return Case(job, ids, text)
    raise AssertionError("no seed runs to the end")


@pytest.fixture(scope="session")
def undisturbed(alone: Served) -> list[Case]:
    """What each job makes when nothing happens."""
    return [make_case(alone, number) for number in range(NUM_JOBS)]


@pytest.fixture
def cases(undisturbed: list[Case]) -> list[Case]:
    """The jobs, with fresh ids."""
    return [replace(case, job=replace(case.job, generation_id=keys.new_generation_id())) for case in undisturbed]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two workers of one model in the middle of the jobs; each holds at least one. `struck` is the one to suffer."""

    struck: "subprocess.Popen[bytes]"
    struck_engine_pid: int
    struck_serving_pid: int
    num_struck: int  # jobs that it holds
    other: "subprocess.Popen[bytes]"


@pytest.fixture
async def pair(broker: Broker, redis_url: str, cases: list[Case], tmp_path: Path) -> AsyncIterator[Pair]:
    """Both workers are ready before the jobs come, and neither has slots for all of them."""
    with ExitStack() as stack:
        struck, other = (
            stack.enter_context(worker_process(redis_url, tmp_path / name, module="worker", **VARIABLES))
            for name in ("struck", "other")
        )
        for worker in (struck, other):
            await until(partial(is_ready, broker, worker.pid), 60)
        for case in cases:
            await submit(broker, case.job)
        await until(lambda: all_have(broker, cases, 20), 60)
        beat = await beat_of(broker, struck.pid)
        assert beat is not None
        num_struck = await num_owned(redis_url, cases, beat.worker_id)
        assert num_struck >= 1
        yield Pair(struck, int(beat.fields["pid"]), int(beat.fields["serving_pid"]), num_struck, other)


async def num_owned(redis_url: str, cases: list[Case], worker_id: str) -> int:
    """How many of the jobs that worker holds; a heartbeat may tell what was a moment ago."""
    client = redis.asyncio.Redis.from_url(redis_url)
    try:
        owners = [await client.hget(keys.record(case.job.generation_id), "owner") for case in cases]
    finally:
        await client.aclose()
    return owners.count(worker_id.encode())


@pytest.mark.parametrize("is_engine", [True, False], ids=["engine", "serving"])
async def test_a_killed_process_costs_no_token(broker: Broker, cases: list[Case], pair: Pair, is_engine: bool) -> None:
    """SIGKILL in the middle of the streams: each goes on at the next index, as if nothing had been."""
    os.kill(pair.struck_engine_pid if is_engine else pair.struck_serving_pid, signal.SIGKILL)
    assert await num_continued(broker, cases) == pair.num_struck
    await until(lambda: not is_running(pair.struck_engine_pid) and not is_running(pair.struck_serving_pid))


async def test_a_killed_worker_costs_no_token(broker: Broker, cases: list[Case], pair: Pair) -> None:
    """The supervisor too: nobody is left to tell, and the other worker finds out by itself."""
    pair.struck.kill()
    assert await num_continued(broker, cases) == pair.num_struck
    await until(lambda: not is_running(pair.struck_engine_pid) and not is_running(pair.struck_serving_pid))


async def test_a_frozen_worker_that_wakes_up_writes_nothing(broker: Broker, cases: list[Case], pair: Pair) -> None:
    """It was taken for dead; its next step is fenced, it drops what it held, and serves again."""
    frozen = (pair.struck.pid, pair.struck_serving_pid, pair.struck_engine_pid)
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    await until(lambda: are_taken_again(broker, cases, pair.num_struck), 60)
    for pid in reversed(frozen):
        os.kill(pid, signal.SIGCONT)
    assert await num_continued(broker, cases) == pair.num_struck

    pair.other.kill()
    again = replace(cases[0].job, generation_id=keys.new_generation_id())
    await submit(broker, again)
    assert (await finished(broker, again.generation_id, 60)).ids == cases[0].ids
    assert pair.struck.poll() is None
    assert is_running(pair.struck_engine_pid)


async def test_draining_moves_the_streams(broker: Broker, cases: list[Case], pair: Pair) -> None:
    """SIGTERM with no time to finish: handed back uncharged, continued by the other worker, status 0."""
    pair.struck.send_signal(signal.SIGTERM)
    await until(lambda: pair.struck.poll() is not None, 30)
    assert pair.struck.returncode == 0
    assert await num_continued(broker, cases) == pair.num_struck


async def test_a_restart_of_the_broker_is_ridden_out(
    broker: Broker, server: RunningServer, cases: list[Case], pair: Pair
) -> None:
    """SIGKILL of the server and a start over its append-only file: the workers keep what they have and go on."""
    server.kill()
    server.start()
    await num_continued(broker, cases)
    assert pair.struck.poll() is None
    assert is_running(pair.struck_engine_pid)


async def num_continued(broker: Broker, cases: list[Case]) -> int:
    """How many generations needed a second attempt, once all logs are closed and equal to the undisturbed ones."""
    attempts = []
    for case in cases:
        logged = await finished(broker, case.job.generation_id, 60)
        assert logged.ids == case.ids
        assert logged.text == case.text
        assert logged.ending is not None
        assert [end.reason for end in logged.ending.choice_ends] == ["LENGTH"]
        assert logged.attempts in ([1], [1, 2])
        attempts.append(logged.attempts)
    return attempts.count([1, 2])


async def all_have(broker: Broker, cases: list[Case], num_tokens: int) -> bool:
    """Whether each log has at least so many tokens."""
    return all([await has_tokens(broker, case.job.generation_id, num_tokens) for case in cases])


async def are_taken_again(broker: Broker, cases: list[Case], num_wanted: int) -> bool:
    """Whether so many generations are in their second attempt."""
    standings = await broker.standings([case.job.generation_id for case in cases])
    return [each is not None and each.attempt == 2 for each in standings].count(True) == num_wanted


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
