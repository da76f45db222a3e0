"""What the streams of a chaos run ask for, and what each must get: computed once, before anything is struck."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from llamaherd.v1 import common_pb2, generation_pb2, generation_pb2_grpc

PROMPTS = (
    "Once upon a time",
    "What happens if a worker dies?",
    "Count to 150",
    "The capital of France is",
    "Repeat after me: 🦙 loves 🐑!",
    "def main():\n    ",
    "Name three things that float, and say of each why it does. Then name three that sink.",
)
STOP_STRINGS = ((), (), ("the", "zz"), ("\n\n",), ("🦙", "e e", "qu"))
MAX_RESPONSE_S = 300.0
MODEL = "demo"


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice as an undisturbed run makes it."""

    ids: tuple[int, ...]
    text: str
    reason: int  # a FinishReason


@dataclass(frozen=True, slots=True)
class Question:
    """A generation and its only right answer."""

    spec: common_pb2.GenerationSpec
    choices: tuple[Choice, ...]


def make_specs(rnd: random.Random, num_specs: int) -> list[common_pb2.GenerationSpec]:
    """Different prompts, inputs, knobs, seeds and ends; most are so flat that every token depends on all before it."""
    return [_make_spec(rnd, number) for number in range(num_specs)]


def _make_spec(rnd: random.Random, number: int) -> common_pb2.GenerationSpec:
    is_flat = rnd.random() < 0.7
    sampling = common_pb2.Sampling(seed=rnd.getrandbits(60))
    if is_flat:
        sampling.temperature, sampling.top_k = rnd.choice((5.0, 20.0)), rnd.choice((0, 200, 1000))
    else:
        sampling.temperature, sampling.top_p = rnd.choice((0.0, 0.7, 1.0)), rnd.choice((0.8, 0.95, 1.0))
    spec = common_pb2.GenerationSpec(
        model=MODEL,
        sampling=sampling,
        stopping=common_pb2.Stopping(
            max_new_tokens=rnd.randint(40, 160), stop_strings=() if is_flat else rnd.choice(STOP_STRINGS)
        ),
        output=common_pb2.OutputOptions(logprobs=rnd.random() < 0.2, top_logprobs=rnd.choice((0, 0, 0, 2))),
        priority=rnd.choice((common_pb2.PRIORITY_NORMAL, common_pb2.PRIORITY_NORMAL, common_pb2.PRIORITY_LOW)),
    )
    if number % 6 == 0:
        sampling.n = rnd.randint(2, 3)
        spec.stopping.max_new_tokens = 40
    if number % 5 == 0:
        sampling.repetition_penalty, sampling.frequency_penalty = 1.2, 0.3
    if number % 7 == 0:
        sampling.min_p, sampling.typical_p, sampling.logit_bias[300] = 0.001, 0.95, 2.0
    if number % 3 == 0:
        spec.stopping.min_new_tokens = 30
    spec.sampling.CopyFrom(sampling)
    prompt = rnd.choice(PROMPTS)
    if number % 4 == 3:
        spec.chat.messages.add(role=common_pb2.ROLE_USER, content=prompt)
    elif number % 4 == 2:
        spec.token_ids.ids[:] = [1, *(rnd.randrange(300, 900) for _ in range(rnd.randint(1, 30)))]
    else:
        spec.prompt = prompt
    return spec


async def answer_all(
    stub: generation_pb2_grpc.GenerationServiceStub, specs: Sequence[common_pb2.GenerationSpec]
) -> list[Question]:
    """Ask each once, while nothing is struck."""

    async def ask(spec: common_pb2.GenerationSpec) -> Question:
        answer = await _complete(stub, generation_pb2.CompleteRequest(spec=spec))
        return Question(
            spec,
            tuple(
                Choice(tuple(token.id for token in each.tokens), each.text, each.finished.reason)
                for each in answer.choices
            ),
        )

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(spec)) for spec in specs]
    return [task.result() for task in tasks]


async def _complete(
    stub: generation_pb2_grpc.GenerationServiceStub, request: generation_pb2.CompleteRequest
) -> generation_pb2.CompleteResponse:
    """The answer, also of a gateway that has only just begun to see workers."""
    while True:
        try:
            answer: generation_pb2.CompleteResponse = await stub.Complete(request, timeout=MAX_RESPONSE_S)
            return answer
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.1)
