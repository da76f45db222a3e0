"""Asking a real gateway and a real worker, and asking transformers for the same."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from contract import keys
from contract.broker import Broker
from contract.bundle import ModelBundle
from contract.messages import JOB_LEVEL
from llamaherd.v1 import common_pb2, generation_pb2
from tests.engine.oracle import random_prompts
from tests.knobs.model import SHAPE
from tests.service.gateways import RunningGateway
from tests.worker.rig import linked
from worker.engine.sequence import GenerationRequest, SamplingParams, StepEvent, StoppingParams
from worker.engine_loop import SteppingEngine
from worker.load import load
from worker.progress import Progress
from worker.serve import serve
from worker.served import Served
from worker.settings import WorkerSettings

MODEL = "knobs"
BEAT_S = 0.1
PROMPT = tuple(random_prompts(SHAPE.vocab_size, [37], seed=9)[0])
OFF = common_pb2.Sampling(
    temperature=0,
    top_k=0,
    top_p=1,
    min_p=0,
    typical_p=1,
    repetition_penalty=1,
    frequency_penalty=0,
    presence_penalty=0,
    n=1,
    seed=1234,
)
# A random model hardly ever repeats itself; with a dozen favourites it does, and penalties show.
FAVOURITES = dict.fromkeys(range(300, 312), 6.0) | {40: -100.0, 500: 1.5}


@dataclass(slots=True)
class Pace:
    """How long the engine waits before each step; a test may make it slow."""

    step_s: float = 0.0

    def __call__(self) -> None:
        """Wait as long."""
        time.sleep(self.step_s)


class PacedEngine:
    """The engine, each step of which begins when `pace` returns."""

    def __init__(self, engine: SteppingEngine, pace: Callable[[], object]) -> None:
        self._engine = engine
        self._pace = pace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self) -> list[StepEvent]:
        """Wait, then step."""
        self._pace()
        return self._engine.step()


@dataclass(frozen=True, slots=True)
class Herd:
    """The gateway, what it serves, and the same model in transformers."""

    gateway: RunningGateway
    bundle: ModelBundle
    theirs: Any


@dataclass(slots=True)
class Answer:
    """A whole stream, by choice."""

    settings: common_pb2.Settings
    tokens: list[list[common_pb2.Token]]
    order: list[common_pb2.Token] = field(default_factory=list)
    ends: list[common_pb2.ChoiceFinished] = field(default_factory=list)
    completed: common_pb2.Completed | None = None
    generation_id: str = ""

    @property
    def ids(self) -> list[list[int]]:
        """The ids of each choice."""
        return [[token.id for token in tokens] for tokens in self.tokens]

    @property
    def texts(self) -> list[str]:
        """The text of each choice, with what its end releases."""
        ends = {end.choice: end.text for end in self.ends}
        return ["".join(token.text for token in tokens) + ends[n] for n, tokens in enumerate(self.tokens)]

    @property
    def reasons(self) -> list[str]:
        """Why each choice ended."""
        names = {end.choice: common_pb2.FinishReason.Name(end.reason) for end in self.ends}
        return [names[choice].removeprefix("FINISH_REASON_") for choice in range(len(self.tokens))]


def sampling(**changes: object) -> common_pb2.Sampling:
    """Greedy with everything off, but for these."""
    changed = common_pb2.Sampling(**changes)  # type: ignore[arg-type]  # each test gives what its field takes
    merged = common_pb2.Sampling()
    merged.CopyFrom(OFF)
    merged.MergeFrom(changed)
    return merged


def spec_of(
    chosen: common_pb2.Sampling,
    *,
    prompt_ids: Sequence[int] = PROMPT,
    output: common_pb2.OutputOptions | None = None,
    **stopping: object,
) -> common_pb2.GenerationSpec:
    """A prompt of ids, and 16 tokens unless `stopping` says otherwise."""
    return common_pb2.GenerationSpec(
        model=MODEL,
        token_ids=common_pb2.TokenIds(ids=prompt_ids),
        sampling=chosen,
        stopping=common_pb2.Stopping(**({"max_new_tokens": 16} | stopping)),  # type: ignore[arg-type]
        output=output,
    )


async def ask(herd: Herd, spec: common_pb2.GenerationSpec) -> Answer:
    """Generate, to the end; checks positions, indexes and the order of events on the way."""
    call = herd.gateway.stub.Generate(generation_pb2.GenerateRequest(spec=spec), timeout=120)
    first = await call.read()
    assert first is not grpc.aio.EOF
    settings = first.accepted.settings
    answer = Answer(settings, [[] for _ in range(settings.sampling.n)], generation_id=first.accepted.generation_id)
    while (message := await call.read()) is not grpc.aio.EOF:
        assert answer.completed is None, "something comes after the end"
        for token in message.tokens:
            assert token.position == len(answer.order)
            assert token.index == len(answer.tokens[token.choice])
            assert token.choice not in {end.choice for end in answer.ends}, "a choice goes on after its end"
            answer.order.append(token)
            answer.tokens[token.choice].append(token)
        if message.HasField("choice_finished"):
            answer.ends.append(message.choice_finished)
        if message.HasField("completed"):
            answer.completed = message.completed
    assert sorted(end.choice for end in answer.ends) == list(range(settings.sampling.n))
    assert all(end.num_tokens == len(answer.tokens[end.choice]) for end in answer.ends)
    return answer


def as_engine_request(
    settings: common_pb2.Settings, eos_ids: Sequence[int], prompt_ids: Sequence[int]
) -> GenerationRequest:
    """What the echoed settings mean to an engine."""
    used, stopping = settings.sampling, settings.stopping
    return GenerationRequest(
        generation_id="g",
        prompt_ids=tuple(prompt_ids),
        sampling=SamplingParams(
            temperature=used.temperature,
            top_k=used.top_k,
            top_p=used.top_p,
            seed=used.seed,
            min_p=used.min_p,
            typical_p=used.typical_p,
            repetition_penalty=used.repetition_penalty,
            frequency_penalty=used.frequency_penalty,
            presence_penalty=used.presence_penalty,
            logit_bias=tuple(sorted(used.logit_bias.items())),
        ),
        stopping=StoppingParams(
            max_new_tokens=stopping.max_new_tokens,
            stop_strings=tuple(stopping.stop_strings),
            eos_token_ids=tuple(eos_ids),
            ignore_eos=stopping.ignore_eos,
            stop_token_ids=tuple(stopping.stop_token_ids),
            min_new_tokens=stopping.min_new_tokens,
        ),
        num_choices=used.n,
    )


def load_engine(folder: Path) -> Served:
    """The folder's model, in float32 on the CPU, with a small cache."""
    progress, fd = Progress.create()
    os.close(fd)
    return load(WorkerSettings(model_path=folder, device="cpu", kv_cache_bytes=8 << 20), progress)


@asynccontextmanager
async def working(redis_url: str, served: Served, model: str) -> AsyncIterator[None]:
    """A worker in this process, with a heartbeat, for the length of the block."""
    progress, fd = Progress.create()
    os.close(fd)
    settings = WorkerSettings(model_path=Path("/knobs"), model_name=model, drain_timeout_s=0.0)
    worker_id, stop, broker = keys.new_id(), asyncio.Event(), Broker.connect(redis_url)

    async def beat() -> None:
        while True:
            await broker.worker_beat(worker_id, {"model": model, "state": "ready", "job_level": str(JOB_LEVEL)})
            await asyncio.sleep(BEAT_S)

    async with linked(served.engine, progress) as engine:
        serving = asyncio.create_task(serve(served.bundle, engine, settings, broker, worker_id, progress, stop))
        beating = asyncio.create_task(beat())
        try:
            yield
        finally:
            stop.set()
            await serving
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
            await broker.close()
