"""Several answers to one question, through every process of a herd."""

import grpc

from llamaherd.v1 import common_pb2, generation_pb2, generation_pb2_grpc
from tests.herd_process import HerdProcess
from tests.story.test_many_streams import request


async def test_three_answers_come_side_by_side(herd_up: HerdProcess) -> None:
    """Their tokens interleave in one stream; each is drawn by itself, and the same seed draws all three again."""
    ask = request("Tell me a story", temperature=1.5, n=3, seed=7)
    ask.spec.output.top_logprobs = 2
    async with grpc.aio.insecure_channel(herd_up.address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        tokens = [token async for message in stub.Generate(ask, timeout=100) for token in message.tokens]
        answer = await stub.Complete(generation_pb2.CompleteRequest(spec=ask.spec), timeout=100)

    texts = ["".join(token.text for token in tokens if token.choice == choice) for choice in range(3)]
    assert len(set(texts)) == 3
    assert [token.choice for token in tokens[:3]] == [0, 1, 2]
    assert [choice.text for choice in answer.choices] == texts
    assert {choice.finished.reason for choice in answer.choices} <= {
        common_pb2.FINISH_REASON_EOS,
        common_pb2.FINISH_REASON_LENGTH,
    }
    assert all(len(token.top_logprobs) == 2 for token in tokens)
