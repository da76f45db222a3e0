"""A gateway that tells one generation and, call by call, breaks off where a test says: moments no real one repeats."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from contract.errors import ServeError, UnknownGeneration
from contract.messages import CHAIN_START, extend_chain
from llamaherd.v1 import common_pb2, generation_pb2, generation_pb2_grpc
from service import status

GENERATION_ID = "0.abc"

Response = generation_pb2.GenerateResponse
Request = generation_pb2.GenerateRequest | generation_pb2.AttachRequest | generation_pb2.CompleteRequest


def tell(*choices: str, prompt_tokens: int = 3) -> list[Response]:
    """A whole stream: one token a letter, the choices by turns."""
    messages = [
        Response(accepted=common_pb2.Accepted(generation_id=GENERATION_ID, prompt_tokens=prompt_tokens)),
        Response(queued=common_pb2.Queued(position=0)),
        Response(started=common_pb2.Started(attempt=1)),
    ]
    chain, position = CHAIN_START, 0
    for index in range(max(map(len, choices))):
        for choice, text in enumerate(choices):
            if index < len(text):
                chain = extend_chain(chain, choice, ord(text[index]))
                token = common_pb2.Token(
                    choice=choice, index=index, position=position, id=ord(text[index]), text=text[index], chain=chain
                )
                messages.append(Response(tokens=[token]))
                position += 1
                if index == len(text) - 1:
                    end = common_pb2.ChoiceFinished(choice=choice, reason="FINISH_REASON_EOS", num_tokens=len(text))
                    messages.append(Response(choice_finished=end))
    usage = common_pb2.Usage(prompt_tokens=prompt_tokens, output_tokens=position)
    messages.append(Response(completed=common_pb2.Completed(usage=usage, attempts=1)))
    return messages


def from_position(messages: Sequence[Response], position: int) -> list[Response]:
    """What Attach gives: every event, and the tokens from `position` on."""
    return [m for m in messages if not m.tokens or m.tokens[0].position >= position]


@dataclass(frozen=True, slots=True)
class Cut:
    """End one call after so many messages: with `error`, or by a connection that breaks."""

    after: int
    error: ServeError | None = None
    trailers: tuple[tuple[str, str], ...] = ()
    stall: bool = False  # say no more, instead


@dataclass(slots=True)
class ScriptedGateway:
    """What it tells, how its next calls end, and what it was asked."""

    messages: list[Response]
    cuts: list[Cut] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    submitted: list[str] = field(default_factory=list)
    address: str = ""

    def forget(self) -> None:
        """What it was asked, and how calls were to end."""
        for each in (self.cuts, self.requests, self.metadata, self.cancelled, self.submitted):
            each.clear()

    async def play(self, request: Request, context: Any, messages: Sequence[Response]) -> None:
        """One streaming call."""
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        cut = self.cuts.pop(0) if self.cuts else None
        for message in messages if cut is None else messages[: cut.after]:
            await context.write(message)
        if cut is None:
            return
        if cut.stall:
            await asyncio.Event().wait()
        context.set_trailing_metadata(cut.trailers)
        if cut.error is not None:
            await status.end(context, status.to_status(cut.error))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")


class _Servicer(generation_pb2_grpc.GenerationServiceServicer):
    def __init__(self, gateway: ScriptedGateway) -> None:
        self._gateway = gateway

    async def Generate(self, request: generation_pb2.GenerateRequest, context: Any) -> None:
        await self._gateway.play(request, context, self._gateway.messages)

    async def Attach(self, request: generation_pb2.AttachRequest, context: Any) -> None:
        if request.generation_id != GENERATION_ID:
            await status.end(context, status.to_status(UnknownGeneration(request.generation_id)))
        await self._gateway.play(request, context, from_position(self._gateway.messages, request.from_position))

    async def Complete(self, request: generation_pb2.CompleteRequest, context: Any) -> generation_pb2.CompleteResponse:
        self._gateway.requests.append(request)
        await asyncio.Event().wait()
        raise AssertionError("it never answers")

    async def SubmitGeneration(
        self, request: generation_pb2.SubmitGenerationRequest, context: Any
    ) -> generation_pb2.SubmitGenerationResponse:
        self._gateway.submitted.append(request.request_id)
        return generation_pb2.SubmitGenerationResponse(accepted=self._gateway.messages[0].accepted)

    async def CancelGeneration(
        self, request: generation_pb2.CancelGenerationRequest, context: Any
    ) -> generation_pb2.CancelGenerationResponse:
        self._gateway.cancelled.append(request.generation_id)
        return generation_pb2.CancelGenerationResponse(state="GENERATION_STATE_FINISHED")


@asynccontextmanager
async def scripted(*choices: str, cuts: Sequence[Cut] = ()) -> AsyncIterator[ScriptedGateway]:
    """Serve these choices on a free port of the loopback."""
    gateway = ScriptedGateway(tell(*choices), list(cuts))
    server = grpc.aio.server()
    register = generation_pb2_grpc.add_GenerationServiceServicer_to_server
    register(_Servicer(gateway), server)  # type: ignore[no-untyped-call]  # generated without types
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    gateway.address = f"127.0.0.1:{port}"
    try:
        yield gateway
    finally:
        await server.stop(grace=None)
