"""What worker tests share: jobs, logs, and workers in this process or in their own."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from contract import keys
from contract.broker import Broker, State, WorkerBeat
from contract.lifetime import spawn
from contract.messages import AttemptMark, Ending, Job, JobSampling, JobStopping, LogEntry, TokenRow, decode_tokens
from llamaherd.v1 import common_pb2
from tests.until import until
from tests.worker.double_engine_process import double_bundle
from tests.worker.engine_double import EngineDouble, Gate
from worker.engine_link import EngineLink
from worker.engine_loop import EngineLoop, SteppingEngine
from worker.progress import Progress
from worker.serve import serve
from worker.settings import WorkerSettings
from worker.step_meter import StepMeter

ROOT = Path(__file__).parents[2]
MODEL = "double"
GATEWAY = "0" * 32


def make_job(
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    *,
    model: str = MODEL,
    job_class: str = "normal",
    max_time_ms: int = 600_000,
    sampling: JobSampling | None = None,
) -> Job:
    """A job with an id of its own; greedy unless asked otherwise."""
    return Job(
        generation_id=keys.new_generation_id(),
        model=model,
        job_class=job_class,
        prompt_ids=tuple(prompt_ids),
        sampling=sampling or JobSampling(temperature=0.0, top_k=0, top_p=1.0, seed=7),
        stopping=JobStopping(max_new_tokens=max_new_tokens, max_time_ms=max_time_ms),
        strip_leading_space=False,
    )


async def submit(broker: Broker, job: Job) -> str:
    """Queue the job as a gateway would, which knows the model from earlier; return the generation's id."""
    bundle = double_bundle()
    await broker.announce(job.model, bundle.digest, bundle.to_bytes())
    await broker.submit(job, caller="anonymous", digest="d", gateway_id=GATEWAY, max_waiting=1000, window_ms=600_000)
    return job.generation_id


@dataclass(frozen=True, slots=True)
class Logged:
    """A token log, read."""

    ids: list[int]
    text: str
    attempts: list[int]
    ending: Ending | None
    choices: list[list[int]]  # the ids of each


async def read(broker: Broker, generation_id: str) -> Logged:
    """The log as it stands; checks on the way that no position is missing or twice."""
    entries: list[LogEntry] = await broker.read_log(generation_id)
    tokens = [token for each in entries if isinstance(each, TokenRow) for token in decode_tokens(each.body)]
    assert [token.position for token in tokens] == list(range(len(tokens))), "a position is missing or twice"
    endings = [each for each in entries if isinstance(each, Ending)]
    assert len(endings) <= 1
    return Logged(
        ids=[token.id for token in tokens],
        text="".join(token.text for token in tokens),
        attempts=[each.attempt for each in entries if isinstance(each, AttemptMark)],
        ending=endings[0] if endings else None,
        choices=_by_choice(tokens),
    )


def _by_choice(tokens: Sequence[common_pb2.Token]) -> list[list[int]]:
    """Ids by choice; checks that each choice counts its tokens without gap."""
    choices: list[list[int]] = [[] for _ in range(1 + max((token.choice for token in tokens), default=0))]
    for token in tokens:
        assert token.index == len(choices[token.choice]), "an index is missing or twice"
        choices[token.choice].append(token.id)
    return choices


async def finished(broker: Broker, generation_id: str, timeout_s: float = 30.0) -> Logged:
    """The log once it is closed."""

    async def is_finished() -> bool:
        (standing,) = await broker.standings([generation_id])
        return standing is not None and standing.state is State.FINISHED

    await until(is_finished, timeout_s, what=f"{generation_id} is finished")
    return await read(broker, generation_id)


async def has_tokens(broker: Broker, generation_id: str, num_tokens: int) -> bool:
    """Whether the log has at least so many."""
    (standing,) = await broker.standings([generation_id])
    return standing is not None and standing.num_tokens >= num_tokens


async def beat_of(broker: Broker, pid: int) -> WorkerBeat | None:
    """The heartbeat of the worker whose supervisor is this process."""
    found = [each for each in await broker.pool() if each.fields.get("supervisor_pid") == str(pid)]
    return max(found, key=lambda each: int(each.fields["pid"]), default=None)


async def is_ready(broker: Broker, pid: int) -> bool:
    """Whether that worker serves."""
    beat = await beat_of(broker, pid)
    return beat is not None and beat.fields["state"] == "ready"


@asynccontextmanager
async def linked(engine: SteppingEngine, progress: Progress) -> AsyncIterator[EngineLink]:
    """The engine in a loop as its process has it, but on a thread; ended at the end of the block."""
    ours, theirs = socket.socketpair()

    def run() -> None:
        with theirs, suppress(Exception):  # the link has been told
            EngineLoop(engine, theirs, progress).run()

    link = await EngineLink.over(ours, StepMeter(MODEL, progress))
    thread = threading.Thread(target=run, name="engine", daemon=True)
    thread.start()
    try:
        yield link
    finally:
        link.stop()
        await asyncio.to_thread(thread.join)


@dataclass(slots=True)
class LocalWorker:
    """A worker in this process: no supervisor, so nobody beats for it unless the test does."""

    worker_id: str
    engine: EngineDouble
    progress: Progress
    stop: asyncio.Event
    serving: "asyncio.Task[None]"

    async def drain(self) -> None:
        """As SIGTERM does."""
        self.stop.set()
        await self.serving


@asynccontextmanager
async def local_worker(
    broker: Broker, engine: EngineDouble | None = None, *, worker_id: str = "", **settings: object
) -> AsyncIterator[LocalWorker]:
    """Serve the engine double until the end of the block; then drain."""
    engine = engine or EngineDouble()
    progress, fd = Progress.create()
    os.close(fd)
    chosen = WorkerSettings.model_validate({"model_path": Path("/double"), "drain_timeout_s": 0.0, **settings})
    worker_id = worker_id or keys.new_id()
    stop = asyncio.Event()
    async with linked(engine, progress) as link:
        serving = asyncio.create_task(serve(double_bundle(), link, chosen, broker, worker_id, progress, stop))
        worker = LocalWorker(worker_id, engine, progress, stop, serving)
        try:
            yield worker
        finally:
            if isinstance(engine.pace, Gate):
                engine.pace.open()
            stop.set()
            await serving


@contextmanager
def worker_process(
    redis_url: str, log: Path, *, module: str = "tests.worker.double_worker", **variables: str
) -> "Iterator[subprocess.Popen[bytes]]":
    """A worker, three processes: supervisor, engine, and what serves it; ended at the end of the block.

    Args:
        log: where all write.
        module: its main program.
        variables: of its environment.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HERD_", "OTEL_"))}
    env = {**kept, "HERD_WORKER_REDIS_URL": redis_url, "HERD_WORKER_MODEL_PATH": f"/{MODEL}", **variables}
    with log.open("ab") as sink:
        process = spawn([sys.executable, "-m", module], env={**env, "PYTHONPATH": str(ROOT)}, stdout=sink, stderr=sink)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()  # its children die with it
        process.wait()
