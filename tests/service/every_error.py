"""Every error of the service, and what really brings it about over a channel."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc

from contract import errors, keys
from contract.broker import Broker
from contract.errors import ServeError
from contract.messages import EndReason
from llamaherd.v1 import chat_pb2, chat_pb2_grpc, common_pb2, generation_pb2
from tests.service.bundles import bundle
from tests.service.gateways import (
    RunningGateway,
    error_of,
    first_answer,
    open_stream,
    prompt,
    read_rest,
    read_until,
)
from tests.service.narrow import has_room, narrow_channel, say_much
from tests.service.scripted_worker import ScriptedWorker, scripted_worker
from tests.until import until


@dataclass(slots=True)
class World:
    """What a trigger may use: each a thing that is really there."""

    gateway: RunningGateway
    worker: ScriptedWorker
    broker: Broker
    tiny: RunningGateway  # lets one wait and two in
    impatient: RunningGateway  # lets one in, and go if it reads nothing
    stingy: RunningGateway  # lets a caller have one generation
    draining: RunningGateway  # has one stream and was told to stop
    cut_off: RunningGateway  # its Redis is gone


async def bad_field(world: World) -> None:
    """Several fields."""
    request = prompt()
    request.spec.sampling.temperature = -1
    request.spec.stopping.stop_strings.append("")
    await world.gateway.stub.Complete(generation_pb2.CompleteRequest(spec=request.spec))


async def unknown_model(world: World) -> None:
    """A name that nobody announced."""
    await world.gateway.stub.Generate(prompt(model="nobody")).read()


async def unknown_generation(world: World) -> None:
    """A well-formed id of nothing."""
    ask = generation_pb2.GetGenerationRequest(generation_id=keys.new_generation_id())
    await world.gateway.stub.GetGeneration(ask)


async def request_id_reused(world: World) -> None:
    """The same request_id with another prompt."""
    call, _ = await open_stream(world.gateway, prompt("one", request_id="reused"))
    try:
        await world.gateway.stub.Generate(prompt("two", request_id="reused")).read()
    finally:
        call.cancel()


async def overloaded(world: World) -> None:
    """One may wait, and one does; what others cancelled counts until a worker drops it."""
    request = prompt(model="base")
    call, _ = await open_stream(world.tiny, request)
    try:
        await world.tiny.stub.Generate(request).read()
    finally:
        call.cancel()


async def over_quota(world: World) -> None:
    """One generation stands, one may stand."""
    call, _ = await open_stream(world.gateway, prompt())
    try:
        await world.stingy.stub.Generate(prompt()).read()
    finally:
        call.cancel()


async def too_late_already(world: World) -> None:
    """The queue takes longer than the request may."""
    hasty = prompt(model="slow")
    hasty.spec.stopping.max_time_ms = 1
    slow = bundle()
    async with scripted_worker(world.broker, {"slow": slow}) as worker:
        await until(lambda: is_known(world.gateway, "slow"), what="the gateway sees the model")
        calls = [(await open_stream(world.gateway, prompt(model="slow")))[0] for _ in range(12)]
        told: list[grpc.aio.AioRpcError] = []

        async def is_told() -> bool:
            await world.broker.read_jobs(worker.worker_ids["slow"], "slow", "normal", count=1, block_ms=0)
            calls.append((await open_stream(world.gateway, prompt(model="slow")))[0])
            answer = await first_answer(world.gateway.stub.Generate(hasty))
            if isinstance(answer, grpc.aio.AioRpcError):
                told.append(answer)
            return bool(told)

        try:
            await until(is_told, what="the drain is measured")
        finally:
            for call in calls:
                call.cancel()
    raise told[-1]


async def is_known(gateway: RunningGateway, model: str) -> bool:
    """Whether a worker of the model lives, as the gateway sees it."""
    answer = await first_answer(gateway.stub.Generate(prompt(model=model)))
    return not isinstance(answer, grpc.aio.AioRpcError)


async def position_ahead(world: World) -> None:
    """A finished generation has fewer tokens."""
    call, received = await open_stream(world.gateway, prompt(request_id="short"))
    work = await world.worker.take(received.generation_id)
    await work.say("a")
    await work.finish()
    await read_rest(call, received)
    request = generation_pb2.AttachRequest(generation_id=received.generation_id, from_position=9)
    raise await error_of(world.gateway.stub.Attach(request))


async def gateway_full(world: World) -> None:
    """Two are inside, two may be."""
    request = prompt(request_id="inside")
    request.spec.priority = common_pb2.PRIORITY_HIGH  # a class where nobody waits
    streams = [await open_stream(world.tiny, request) for _ in range(2)]
    try:
        await world.tiny.stub.Generate(request).read()
    finally:
        for call, _ in streams:
            call.cancel()


async def reader_stalled(world: World) -> None:
    """A client that reads nothing, until it has lost its place."""
    async with narrow_channel(world.impatient) as channel:
        call = type(world.impatient.stub)(channel).Generate(prompt())
        await say_much(await world.worker.take((await call.read()).accepted.generation_id))
        await until(lambda: has_room(world.impatient), what="its place is free")
        raise await error_of(call)


async def draining(world: World) -> None:
    """A new stream at a gateway that was told to stop."""
    await world.draining.stub.Generate(prompt()).read()


async def no_worker(world: World) -> None:
    """Announced, and nobody beats for it."""
    abandoned = bundle()
    await world.broker.announce("abandoned", abandoned.digest, abandoned.to_bytes())
    told: list[grpc.aio.AioRpcError] = []

    async def is_seen() -> bool:
        told.append(await error_of(world.gateway.stub.Generate(prompt(model="abandoned"))))
        return told[-1].code() is not CODE.NOT_FOUND

    await until(is_seen, what="the gateway has looked again")
    raise told[-1]


async def broker_down(world: World) -> None:
    """A request to a gateway without its Redis."""
    await world.cut_off.stub.Generate(prompt()).read()


async def ended_with(world: World, reason: EndReason) -> None:
    """A generation that its worker, or somebody in its place, ends so."""
    call, received = await open_stream(world.gateway, prompt())
    work = await world.worker.take(received.generation_id)
    await work.say("a")
    await work.finish(reason)
    raise await error_of(call, received)


async def log_behind(world: World) -> None:
    """The log ends below what was delivered."""
    call, received = await open_stream(world.gateway, prompt())
    work = await world.worker.take(received.generation_id)
    await work.say("a")
    await read_until(call, received, 1)
    await world.broker._client.delete(keys.record(work.generation_id), keys.log(work.generation_id))
    raise await error_of(call, received)


async def unreadable(world: World) -> None:
    """The record is none of ours any more."""
    generation_id = keys.new_generation_id()
    await world.broker._client.set(keys.record(generation_id), "no record", px=60_000)
    await world.gateway.stub.GetGeneration(generation_pb2.GetGenerationRequest(generation_id=generation_id))


async def unknown_session(world: World) -> None:
    """A handle that belongs to nothing."""
    await chat_pb2_grpc.ChatServiceStub(world.gateway.channel).Interrupt(chat_pb2.InterruptRequest())


async def session_taken(world: World) -> None:
    """A connection speaks after a later one has resumed its conversation."""
    chat = chat_pb2_grpc.ChatServiceStub(world.gateway.channel)
    first, second = chat.Chat(), chat.Chat()
    try:
        await first.write(chat_pb2.ChatRequest(setup=chat_pb2.ChatSetup(model="chat")))
        handle = (await first.read()).ready.resumption_handle
        await second.write(chat_pb2.ChatRequest(setup=chat_pb2.ChatSetup(resumption_handle=handle)))
        await second.read()
        await first.write(chat_pb2.ChatRequest(user_message=chat_pb2.UserMessage(content="hello")))
        await first.read()
        raise await error_of(first)
    finally:
        second.cancel()


async def turn_running(world: World) -> None:
    """A second turn before the end of the first."""
    chat = chat_pb2_grpc.ChatServiceStub(world.gateway.channel)
    message = chat_pb2.UserMessage(content="hello")
    call = chat.SendTurn(chat_pb2.SendTurnRequest(setup=chat_pb2.ChatSetup(model="chat"), user_message=message))
    try:
        handle = (await call.read()).ready.resumption_handle
        raise await error_of(chat.SendTurn(chat_pb2.SendTurnRequest(session_handle=handle, user_message=message)))
    finally:
        await chat.Interrupt(chat_pb2.InterruptRequest(session_handle=handle))
        call.cancel()


Trigger = Callable[[World], Awaitable[None]]
CODE = grpc.StatusCode
RETRY = "retry"  # a delay in RetryInfo and in the trailer
REACHED: list[tuple[type[ServeError], Trigger, grpc.StatusCode, str, str, dict[str, str], set[str]]] = [
    # error, what brings it about, code, reason, the text, metadata, and the fields or RETRY: the rest of the details
    (
        *(errors.InvalidRequest, bad_field, CODE.INVALID_ARGUMENT, "INVALID_REQUEST"),
        *("spec.sampling.temperature: is -1; .*", {}, {"spec.sampling.temperature", "spec.stopping.stop_strings[0]"}),
    ),
    (
        *(errors.UnknownModel, unknown_model, CODE.NOT_FOUND, "UNKNOWN_MODEL"),
        *("model 'nobody' is not served here; served: .*chat.*", {"model": "nobody"}, set()),
    ),
    (
        *(errors.UnknownGeneration, unknown_generation, CODE.NOT_FOUND, "UNKNOWN_GENERATION"),
        *("no generation '0.[0-9a-f]{32}'", {"generation_id": "0.[0-9a-f]{32}"}, set()),
    ),
    (
        *(errors.RequestIdReused, request_id_reused, CODE.ALREADY_EXISTS, "REQUEST_ID_REUSED"),
        *("request_id 'reused' was used for a different request", {"request_id": "reused"}, set()),
    ),
    (
        *(errors.QuotaExceeded, over_quota, CODE.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"),
        *(r"the caller has \d+ generations that have not ended; 1 are allowed", {}, {RETRY}),
    ),
    (
        *(errors.Overloaded, overloaded, CODE.UNAVAILABLE, "OVERLOADED"),
        *(r"\d+ requests are waiting for this model; 1 may wait", {}, {RETRY}),
    ),
    (
        *(errors.Unavailable, gateway_full, CODE.UNAVAILABLE, "UNAVAILABLE"),
        *("this gateway has 2 streams; 2 are allowed", {}, {RETRY}),
    ),
    (
        *(errors.ReaderStalled, reader_stalled, CODE.ABORTED, "READER_STALLED"),
        *("the client took no message for 0.5 s", {}, set()),
    ),
    (errors.Draining, draining, CODE.UNAVAILABLE, "DRAINING", "this gateway is draining", {}, {RETRY}),
    (
        *(errors.NoWorker, no_worker, CODE.UNAVAILABLE, "NO_WORKER"),
        *("no live worker serves model 'abandoned'", {}, {RETRY}),
    ),
    (errors.BrokerDown, broker_down, CODE.UNAVAILABLE, "BROKER_DOWN", "the broker does not answer", {}, {RETRY}),
    (
        *(errors.DeadlinePassed, lambda world: ended_with(world, EndReason.DEADLINE)),
        *(CODE.DEADLINE_EXCEEDED, "DEADLINE_PASSED", "the deadline passed before the generation ended", {}, set()),
    ),
    (
        *(errors.DeadlineTooShort, too_late_already, CODE.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT"),
        r"the queue takes about \d+\.\d s, and the deadline leaves 0\.0 s",
        *({"estimated_wait_ms": r"\d+"}, set()),
    ),
    (
        *(errors.PositionAhead, position_ahead, CODE.OUT_OF_RANGE, "POSITION_AHEAD"),
        *("position 9 is beyond the log, which has 1 tokens", {"num_tokens": "1"}, set()),
    ),
    (
        *(errors.LogBehind, log_behind, CODE.DATA_LOSS, "LOG_BEHIND"),
        *("the token log does not agree with what was delivered up to position 1", {}, set()),
    ),
    (
        *(errors.Unreadable, unreadable, CODE.DATA_LOSS, "UNREADABLE"),
        *("what is kept of 0.[0-9a-f]{32} cannot be read", {}, set()),
    ),
    (
        *(errors.PoisonJob, lambda world: ended_with(world, EndReason.POISON), CODE.INTERNAL, "POISON_JOB"),
        *("the job ended 1 workers and was set aside", {"attempts": "1"}, set()),
    ),
    (
        *(errors.GenerationFailed, lambda world: ended_with(world, EndReason.FAILED)),
        *(CODE.INTERNAL, "GENERATION_FAILED", "generation .* failed in attempt 1", {"attempt": "1"}, set()),
    ),
    (
        *(errors.UnknownSession, unknown_session, CODE.NOT_FOUND, "UNKNOWN_SESSION"),
        *("no session belongs to this handle; it has ended, or expired", {}, set()),
    ),
    (
        *(errors.SessionTaken, session_taken, CODE.ABORTED, "SESSION_TAKEN"),
        *("session .* was resumed by another connection", {"session_id": ".+"}, set()),
    ),
    (
        *(errors.TurnRunning, turn_running, CODE.FAILED_PRECONDITION, "TURN_RUNNING"),
        *("turn 0 is still running", {"turn": "0"}, set()),
    ),
]
