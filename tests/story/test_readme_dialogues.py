"""What the README shows the demo model saying is what it says."""

import re
from pathlib import Path

import grpc
import pytest

from llamaherd.v1 import common_pb2, generation_pb2, generation_pb2_grpc
from tests.herd_process import HerdProcess

README = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
ROLES = {"System": common_pb2.ROLE_SYSTEM, "You": common_pb2.ROLE_USER, "Herd": common_pb2.ROLE_ASSISTANT}


def dialogues() -> list[list[common_pb2.ChatMessage]]:
    """Each dialogue of the README, by blank lines inside its blocks."""
    blocks = re.findall(r"^```text\n((?:(?:System|You|Herd): .*\n|\n)+)```$", README, re.MULTILINE)
    found = []
    for dialogue in "\n".join(blocks).strip().split("\n\n"):
        lines = [line.split(": ", 1) for line in dialogue.splitlines()]
        found.append([common_pb2.ChatMessage(role=ROLES[who], content=text) for who, text in lines])
    return found


async def test_herd_up_names_three_questions_that_have_an_answer(herd_up: HerdProcess) -> None:
    """Each begins none of the answers by which the model says that it cannot."""
    said, call = herd_up.log.read_text(encoding="utf-8"), rf'^  herd generate "(.+)" --address {herd_up.address}$'
    first, *questions = re.findall(call, said, re.MULTILINE)
    assert (first, "Worth asking:" in said) == ("Count to ten", True)
    async with grpc.aio.insecure_channel(herd_up.address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        answers = []
        for question in questions:
            message = common_pb2.ChatMessage(role=common_pb2.ROLE_USER, content=question)
            spec = common_pb2.GenerationSpec(chat=common_pb2.ChatInput(messages=[message]))
            spec.stopping.max_new_tokens = 16  # one of them counts for long
            answers.append((await stub.Complete(generation_pb2.CompleteRequest(spec=spec), timeout=200)).choices[0])

    assert len({answer.text for answer in answers}) == len(answers) == 3
    assert [answer.text for answer in answers if "cannot" in answer.text or "do not know" in answer.text] == []


@pytest.mark.parametrize("dialogue", dialogues(), ids=lambda dialogue: dialogue[-1].content[:20])
async def test_the_readme_shows_real_output(herd_up: HerdProcess, dialogue: list[common_pb2.ChatMessage]) -> None:
    """Every line of the model, given the lines before it, in int8 as `herd up` serves it."""
    async with grpc.aio.insecure_channel(herd_up.address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        for index, message in enumerate(dialogue):
            if message.role == common_pb2.ROLE_ASSISTANT:
                spec = common_pb2.GenerationSpec(chat=common_pb2.ChatInput(messages=dialogue[:index]))
                answer = await stub.Complete(generation_pb2.CompleteRequest(spec=spec), timeout=200)
                assert answer.choices[0].text == message.content
