"""The demo model, asked what it was not trained on, through the whole service in int8."""

import asyncio
from random import Random

import grpc

from llamaherd.v1 import common_pb2, generation_pb2, generation_pb2_grpc
from tests.herd_process import HerdProcess
from training.corpus import TEST_NAMES, Dialogue, draw_test

CASES = 3  # of each skill


def request(dialogue: Dialogue) -> generation_pb2.CompleteRequest:
    """The dialogue up to its last question."""
    *before, last = dialogue.turns
    chat = common_pb2.ChatInput()
    if dialogue.system:
        chat.messages.add(role=common_pb2.ROLE_SYSTEM, content=dialogue.system)
    for turn in before:
        chat.messages.add(role=common_pb2.ROLE_USER, content=turn.user)
        chat.messages.add(role=common_pb2.ROLE_ASSISTANT, content=turn.answer)
    chat.messages.add(role=common_pb2.ROLE_USER, content=last.user)
    return generation_pb2.CompleteRequest(spec=common_pb2.GenerationSpec(chat=chat))


async def test_nine_in_ten_held_out_dialogues_are_answered_right(herd_up: HerdProcess) -> None:
    """Every skill, greedily, several at once; the card in herd/demo_model has the long form."""
    cases = [(name, draw_test(name, Random(f"gRPC/{name}/{n}"))) for name in TEST_NAMES for n in range(CASES)]
    slots = asyncio.Semaphore(16)
    async with grpc.aio.insecure_channel(herd_up.address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)

        async def is_right(dialogue: Dialogue) -> bool:
            async with slots:
                answer = await stub.Complete(request(dialogue), timeout=200)
            return dialogue.turns[-1].accepts(answer.choices[0].text)

        right = await asyncio.gather(*(is_right(dialogue) for _, dialogue in cases))

    wrong = [name for (name, _), is_good in zip(cases, right, strict=True) if not is_good]
    assert len(wrong) <= len(cases) / 10, wrong
