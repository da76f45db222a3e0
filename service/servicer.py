"""llamaherd.v1.GenerationService: each RPC as the steps it takes."""

import time
from collections.abc import Mapping
from dataclasses import replace

from contract import keys
from contract.broker import Broker, State
from contract.errors import LogBehind, UnknownGeneration
from contract.messages import CHAIN_START, EndReason
from llamaherd.v1 import common_pb2, generation_pb2
from service import events, spans
from service.context import Context
from service.cursor import Resume
from service.follow import Followed, Follower
from service.rpc import Handler
from service.snapshot import MAX_ANSWER_BYTES, STATES, Gathered, snapshot_of
from service.validate import Call

ANONYMOUS = "anonymous"  # every caller, until there are keys


class GenerationServicer:
    """The RPCs that this version serves."""

    def __init__(self, broker: Broker, follower: Follower) -> None:
        self._broker = broker
        self._follower = follower

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """By the names of the methods."""
        return {
            "Generate": self.generate,
            "Complete": self.complete,
            "SubmitGeneration": self.submit_generation,
            "Attach": self.attach,
            "GetGeneration": self.get_generation,
            "CancelGeneration": self.cancel_generation,
        }

    async def generate(self, request: generation_pb2.GenerateRequest, context: Context) -> bytes:
        """Stream a generation. Everything that came since the last write goes out in one message of tokens."""
        started_s = time.monotonic()
        spans.describe_operation(is_chat=request.spec.HasField("chat"), is_stream=True)
        async with self._follower.follow(_call_of(request, context)) as followed:
            return await _write_all(followed, context, started_s)

    async def attach(self, request: generation_pb2.AttachRequest, context: Context) -> bytes:
        """Stream a generation that stands, from a position on; AttachResponse has the form of GenerateResponse."""
        started_s = time.monotonic()
        generation_id = _checked(request.generation_id)
        resume = Resume(request.from_position, request.chain if request.HasField("chain") else None)
        if resume.position == 0 and resume.chain not in (None, CHAIN_START):
            raise LogBehind(0)
        async with self._follower.attach(generation_id, ANONYMOUS, resume) as followed:
            return await _write_all(followed, context, started_s)

    async def submit_generation(
        self, request: generation_pb2.SubmitGenerationRequest, context: Context
    ) -> generation_pb2.SubmitGenerationResponse:
        """Start a generation for somebody to read later; its duration is none of a generation, so none is counted."""
        job = await self._follower.start(replace(_call_of(request, context), is_unread=True))
        return generation_pb2.SubmitGenerationResponse(accepted=events.accepted_of(job))

    async def complete(self, request: generation_pb2.CompleteRequest, context: Context) -> bytes:
        """Follow a generation to its end and answer with all of it: CompleteResponse."""
        spans.describe_operation(is_chat=request.spec.HasField("chat"), is_stream=False)
        call = replace(_call_of(request, context), max_answer_bytes=MAX_ANSWER_BYTES)
        async with self._follower.follow(call) as followed:
            answer = generation_pb2.CompleteResponse(generation_id=followed.job.generation_id)
            gathered = Gathered(answer, followed.job.num_choices, "spec")
            while not followed.is_finished:
                for body in await followed.next_messages():
                    message = generation_pb2.GenerateResponse.FromString(body)
                    gathered.take(message.tokens, len(body) if message.tokens else 0)
                    if message.HasField("choice_finished"):
                        gathered.finish(message.choice_finished)
            ending = followed.ending
            spans.describe_ending(ending, followed.job)
            answer.settings.CopyFrom(events.settings_of(followed.job))
            answer.usage.CopyFrom(events.usage_of(ending, followed.job))
            answer.timings.CopyFrom(events.timings_of(ending.times))
            return await gathered.pack()

    async def get_generation(self, request: generation_pb2.GetGenerationRequest, context: Context) -> bytes:
        """The record and the log as they stand: GetGenerationResponse."""
        generation_id = _checked(request.generation_id)
        record = await self._broker.record(generation_id, caller=ANONYMOUS)
        return await snapshot_of(self._broker, generation_id, record)

    async def cancel_generation(
        self, request: generation_pb2.CancelGenerationRequest, context: Context
    ) -> generation_pb2.CancelGenerationResponse:
        """End it; one that a worker holds ends with the worker's next step."""
        generation_id = _checked(request.generation_id)
        state, reason = await self._broker.cancel(generation_id, caller=ANONYMOUS)
        if state is not State.FINISHED:
            return generation_pb2.CancelGenerationResponse(state=STATES[state])
        if reason is EndReason.CANCELLED:
            return generation_pb2.CancelGenerationResponse(
                state=generation_pb2.GENERATION_STATE_FINISHED, reason=common_pb2.FINISH_REASON_CANCELLED
            )
        return await self._earlier_end(generation_id)

    async def _earlier_end(self, generation_id: str) -> generation_pb2.CancelGenerationResponse:
        """It had ended before the cancel came."""
        ending = await self._broker.read_ending(generation_id)
        if ending is None:
            raise UnknownGeneration(generation_id)  # expired between the two calls
        if not events.is_ok(ending):
            return generation_pb2.CancelGenerationResponse(state=generation_pb2.GENERATION_STATE_FAILED)
        reason = events.finish_of(ending.choice_ends[0]).reason if ending.choice_ends else None
        return generation_pb2.CancelGenerationResponse(state=generation_pb2.GENERATION_STATE_FINISHED, reason=reason)


async def _write_all(followed: Followed, context: Context, started_s: float) -> bytes:
    """Every message but the last, `completed`, which is returned. Raises the error that the generation ended with."""
    await context.write(followed.accepted())
    has_tokens, completed = False, b""
    while not followed.is_finished:
        messages = await followed.next_messages()
        if followed.is_complete:
            completed = messages.pop()
        for message in messages:
            await context.write(message)
        if followed.num_tokens and not has_tokens:
            has_tokens = True
            spans.describe_first_token(time.monotonic() - started_s)
    spans.describe_ending(followed.ending, followed.job)
    return completed


def _call_of(
    request: generation_pb2.GenerateRequest | generation_pb2.CompleteRequest | generation_pb2.SubmitGenerationRequest,
    context: Context,
) -> Call:
    left_s = context.time_remaining()
    return Call(
        ANONYMOUS,
        request.spec,
        request.request_id if request.HasField("request_id") else None,
        ends_s=None if left_s is None else time.monotonic() + left_s,
    )


def _checked(generation_id: str) -> str:
    """Keys are made of nothing but an id of the right form."""
    if not keys.is_generation_id(generation_id):
        raise UnknownGeneration(generation_id)
    return generation_id
