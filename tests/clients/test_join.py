"""Serialized responses that carry tokens may be joined by concatenation, whatever runtime reads the result."""

import json
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest

from llamaherd.v1 import chat_pb2, common_pb2, generation_pb2, model_pb2
from tests.clients.conftest import Run

JOIN_JS = Path(__file__).parent / "join" / "join.js"
TOKEN = common_pb2.Token.DESCRIPTOR.full_name

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", params=["made by a gateway", "written by hand"])
def token_responses(request: pytest.FixtureRequest) -> list[bytes]:
    """The bytes of successive token responses of one generation; those written by hand have two choices."""
    if request.param == "written by hand":
        return [response.SerializeToString() for response in written_responses()]
    gateway: str = request.getfixturevalue("gateway")
    return [response for response in generated_responses(gateway) if decode(response).tokens]


def test_python_reads_the_same_tokens(token_responses: Sequence[bytes]) -> None:
    """The joined responses hold the tokens of all, in order of position."""
    joined = decode(b"".join(token_responses))

    assert len(token_responses) > 1
    assert list(joined.tokens) == [token for one in token_responses for token in decode(one).tokens]
    assert [token.position for token in joined.tokens] == list(range(len(joined.tokens)))


def test_protobufjs_reads_the_same_tokens(token_responses: Sequence[bytes], node_client: Path, run: Run) -> None:
    """protobuf.js keeps every element of a repeated field that comes in pieces."""
    decoded = run("node", JOIN_JS, stdin=b"".join(token_responses))

    assert decoded.returncode == 0, decoded.stderr
    assert [json.loads(line) for line in decoded.stdout.splitlines()] == rows(token_responses)


def test_go_reads_the_same_tokens(token_responses: Sequence[bytes], go_programs: Path, run: Run) -> None:
    """Go's protobuf does too."""
    decoded = run(go_programs / "join", stdin=b"".join(token_responses))

    assert decoded.returncode == 0, decoded.stderr
    assert [json.loads(line) for line in decoded.stdout.splitlines()] == rows(token_responses)


def test_tokens_stand_alike_in_every_streamed_response() -> None:
    """Each streamed response that can carry tokens does so in field 1, repeated and outside any oneof."""
    carriers = []
    for file in (generation_pb2, chat_pb2, model_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                for field in method.output_type.fields if method.server_streaming else ():
                    if field.message_type is not None and field.message_type.full_name == TOKEN:
                        assert (field.name, field.number) == ("tokens", 1), method.full_name
                        assert field.is_repeated, method.full_name
                        assert field.containing_oneof is None, method.full_name
                        carriers.append(method.name)
    assert carriers == ["Generate", "Attach", "Chat", "SendTurn"]


def generated_responses(gateway: str) -> list[bytes]:
    """Every response of a long answer, as it was sent."""
    spec = common_pb2.GenerationSpec(
        chat=common_pb2.ChatInput(messages=[common_pb2.ChatMessage(role=common_pb2.ROLE_USER, content="Count to 150")]),
        output=common_pb2.OutputOptions(logprobs=True),
    )
    with grpc.insecure_channel(gateway) as channel:
        generate: grpc.UnaryStreamMultiCallable[generation_pb2.GenerateRequest, bytes] = channel.unary_stream(
            "/llamaherd.v1.GenerationService/Generate",
            request_serializer=generation_pb2.GenerateRequest.SerializeToString,
            response_deserializer=None,
        )
        return list(generate(generation_pb2.GenerateRequest(spec=spec), timeout=60))


def written_responses() -> list[generation_pb2.GenerateResponse]:
    """Values that a small model seldom makes: text beyond ASCII and none at all, the largest chain, all zeros."""
    alternatives = [common_pb2.TopLogprob(id=31999, logprob=-0.5, text="\ufffd"), common_pb2.TopLogprob()]
    tokens = [
        common_pb2.Token(),
        common_pb2.Token(choice=1, position=1, id=5, text="Señor ", chain=2**32 - 1, top_logprobs=alternatives),
        common_pb2.Token(index=1, position=2, id=31999, text="😀", logprob=-0.25),
        common_pb2.Token(choice=1, index=1, position=3, id=2),
    ]
    return [generation_pb2.GenerateResponse(tokens=part) for part in (tokens[:1], tokens[1:3], tokens[3:])]


def decode(serialized: bytes) -> generation_pb2.GenerateResponse:
    """One response from its bytes, or several joined."""
    return generation_pb2.GenerateResponse.FromString(serialized)


def rows(token_responses: Sequence[bytes]) -> list[list[object]]:
    """The tokens as the decoders in other languages print them."""
    return [
        [t.choice, t.index, t.position, t.id, t.text, t.chain, [top.id for top in t.top_logprobs]]
        for response in token_responses
        for t in decode(response).tokens
    ]
