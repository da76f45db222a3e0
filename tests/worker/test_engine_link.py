"""An engine behind a socket: commands in, events out in order, a crash comes out."""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from contract.event_loop import new_event_loop
from tests.until import until
from tests.worker.engine_double import BROKEN, REFUSED, EngineDouble, Gate, expected_ids
from tests.worker.rig import linked
from worker.engine.sequence import (
    FinishEvent,
    FinishReason,
    GenerationRequest,
    PrefilledEvent,
    PromptLogprob,
    PromptLogprobsEvent,
    SamplingParams,
    StartedEvent,
    StepEvent,
    StoppingParams,
    TokenEvent,
    TokenLogprob,
)
from worker.engine_link import EngineLink, EngineLost
from worker.engine_loop import Command, EngineLoop, ServerGone, Told
from worker.engine_wire import Frames, StepReport, frame, report_frame
from worker.progress import Progress
from worker.step_meter import StepMeter


@pytest.fixture
def progress() -> Iterator[Progress]:
    """A page of counters."""
    page, fd = Progress.create()
    os.close(fd)
    yield page
    page.close()


def request(generation_id: str, prompt_ids: Sequence[int], max_new_tokens: int) -> GenerationRequest:
    """A request of the double."""
    sampling, stopping = SamplingParams(0.0, 0, 1.0, 0), StoppingParams(max_new_tokens, (), ())
    return GenerationRequest(generation_id, tuple(prompt_ids), sampling, stopping)


@asynccontextmanager
async def running(engine: EngineDouble, progress: Progress) -> AsyncIterator[tuple[EngineLink, list[StepEvent]]]:
    """A link to the engine at work, and the growing list of its events."""
    events: list[StepEvent] = []
    async with linked(engine, progress) as link:
        run = asyncio.create_task(link.run(events.extend))
        try:
            yield link, events
        finally:
            run.cancel()
            with suppress(asyncio.CancelledError):
                await run


def ids_of(events: Sequence[StepEvent], generation_id: str) -> list[int]:
    """The tokens of one generation."""
    return [each.token_id for each in events if isinstance(each, TokenEvent) and each.generation_id == generation_id]


async def test_every_event_is_delivered_in_order(progress: Progress) -> None:
    """Two generations run side by side; each gets its own tokens, then its end."""
    async with running(EngineDouble(), progress) as (link, events):
        link.add(request("a", [1], 20))
        link.add(request("b", [2], 30))
        await until(lambda: sum(isinstance(each, FinishEvent) for each in events) == 2)

    assert ids_of(events, "a") == expected_ids([1], 20)
    assert ids_of(events, "b") == expected_ids([2], 30)
    assert isinstance(events[-1], FinishEvent)


async def test_one_hop_to_the_loop_per_step(progress: Progress) -> None:
    """However many generations a step advances, its events come together."""
    calls: list[int] = []
    gate = Gate()
    engine = EngineDouble(pace=gate)
    async with linked(engine, progress) as link:
        run = asyncio.create_task(link.run(lambda events: calls.append(len(events))))
        for number in range(8):
            link.add(request(str(number), [number + 1], 5))
        await until(lambda: engine.num_requests > 0)
        gate.open()
        await until(lambda: engine.num_requests == 0)
        link.stop()
        await run
        assert len(calls) == engine.num_steps

    assert sum(calls) == 8 * (5 + 3)  # tokens, started, prefilled, finished


async def test_stop_ends_at_a_step_border_with_everything_delivered(progress: Progress) -> None:
    """What the last step made is delivered before `run` returns."""
    engine = EngineDouble()
    events: list[StepEvent] = []
    async with linked(engine, progress) as link:
        run = asyncio.create_task(link.run(events.extend))
        link.add(request("a", [1], 1_000_000))
        await until(lambda: len(events) > 100)
        link.stop()
        await run

    made = ids_of(events, "a")
    assert len(made) == engine.num_steps
    assert made == expected_ids([1], len(made))


async def test_a_refused_request_fails_alone(progress: Progress) -> None:
    """The refusal is an event like any other; the neighbour is not touched."""
    async with running(EngineDouble(), progress) as (link, events):
        link.add(request("bad", [REFUSED], 5))
        link.add(request("good", [1], 5))
        await until(lambda: sum(isinstance(each, FinishEvent) for each in events) == 2)

    ends = {each.generation_id: each for each in events if isinstance(each, FinishEvent)}
    assert ends["bad"].reason is FinishReason.FAILED
    assert ends["bad"].error == "this prompt is refused"
    assert ends["good"].reason is FinishReason.LENGTH


async def test_an_exception_out_of_the_engine_comes_out_of_run(progress: Progress) -> None:
    """Nothing in the process can be trusted then: it goes down, and says why."""
    async with linked(EngineDouble(), progress) as link:
        link.add(request("x", [BROKEN], 5))
        with pytest.raises(EngineLost, match="the device is lost"):
            await link.run(lambda _: None)
        assert progress.has_work == 0


async def test_a_held_generation_makes_no_step_and_goes_on_later(progress: Progress) -> None:
    """A hold stops the tokens and lets the engine sleep; lifting it continues where it stopped."""
    gate = threading.Semaphore(0)
    async with running(EngineDouble(pace=lambda: bool(gate.acquire())), progress) as (link, events):
        link.add(request("a", [1], 6))
        await until(lambda: progress.has_work == 1)
        link.hold("a", True)
        gate.release()
        await until(lambda: progress.has_work == 0)
        made = len(ids_of(events, "a"))
        gate.release(10)
        link.hold("a", False)
        await until(lambda: any(isinstance(each, FinishEvent) for each in events))

    assert made == 1
    assert ids_of(events, "a") == expected_ids([1], 6)


async def test_an_idle_device_is_probed_again_and_again(progress: Progress, monkeypatch: pytest.MonkeyPatch) -> None:
    """First of all, and whenever it was not used for a while; each time the supervisor can see when that was."""
    monkeypatch.setattr("worker.engine_loop.PROBE_AFTER_S", 0.02)
    engine = EngineDouble()
    assert progress.device_ms == 0
    async with running(engine, progress):
        await until(lambda: engine.num_probes >= 1 and progress.device_ms > 0)
        first_ms = progress.device_ms
        await until(lambda: engine.num_probes >= 5)
        assert progress.device_ms > first_ms
        assert engine.num_steps == 0


async def test_a_device_in_use_is_not_probed(progress: Progress) -> None:
    """A step says the same, and costs nothing more."""
    engine = EngineDouble()
    async with running(engine, progress) as (link, events):
        await until(lambda: engine.num_probes == 1)
        used_ms = progress.device_ms
        link.add(request("a", [1], 1_000_000))
        await until(lambda: len(events) > 100 and progress.device_ms > used_ms)
        assert engine.num_probes == 1


async def test_a_probe_that_hangs_shows_as_work_that_stands_still(progress: Progress) -> None:
    """So the supervisor ends it as it ends a step that hangs."""
    hanging = threading.Semaphore(0)
    engine = EngineDouble(on_probe=lambda: bool(hanging.acquire()))
    async with running(engine, progress):
        await until(lambda: engine.num_probes == 1)
        assert (progress.has_work, progress.device_ms) == (1, 0)
        hanging.release()
        await until(lambda: progress.has_work == 0)
        assert progress.device_ms > 0


async def test_a_probe_that_fails_ends_the_engine(progress: Progress) -> None:
    """A lost device does not come back within the process."""

    def fail() -> None:
        raise RuntimeError("the device is lost")

    async with linked(EngineDouble(on_probe=fail), progress) as link:
        with pytest.raises(EngineLost, match="the device is lost"):
            await link.run(lambda _: None)
        assert progress.has_work == 0


async def test_counters_tell_the_supervisor_what_the_engine_does(progress: Progress) -> None:
    """Steps are counted, and work is shown while there is some."""
    engine = EngineDouble()
    async with running(engine, progress) as (link, events):
        link.add(request("a", [1], 7))
        await until(lambda: any(isinstance(each, FinishEvent) for each in events))
        await until(lambda: progress.has_work == 0)
        assert progress.num_steps == engine.num_steps == 7


async def test_settled_comes_at_a_step_border_after_earlier_commands(progress: Progress) -> None:
    """What was held before makes no token after it, and several may wait."""
    async with running(EngineDouble(), progress) as (link, events):
        link.add(request("a", [1], 1_000_000))
        await until(lambda: len(events) > 3)
        link.hold("a", True)
        await asyncio.gather(link.settled(), link.settled())
        made = len(events)
        await link.settled()
        assert len(events) == made


async def test_who_waits_for_an_engine_that_is_gone_is_told(progress: Progress) -> None:
    """Whether it failed or its process has ended; what is sent to it then harms nobody."""
    ours, theirs = socket.socketpair()
    link = await EngineLink.over(ours, StepMeter("double", progress))
    waits = [asyncio.create_task(each) for each in (link.loaded(), link.settled(), link.run(lambda _: None))]
    await asyncio.sleep(0)
    theirs.close()
    for wait in waits:
        with pytest.raises(EngineLost, match="has ended"):
            await wait
    link.cancel("a")


async def test_a_border_that_nobody_waits_for_any_more_is_no_other_border(progress: Progress) -> None:
    """Its answer is still under way when the next one is asked for, with commands in between."""
    ours, theirs = socket.socketpair()
    link = await EngineLink.over(ours, StepMeter("double", progress))
    with theirs:
        left = asyncio.create_task(link.settled())
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.wait([left])
        waiting = asyncio.create_task(link.settled())
        await asyncio.sleep(0)
        asked = await asyncio.to_thread(commands_of, theirs, 2)
        assert [command for command, _ in asked] == [Command.SETTLE, Command.SETTLE]
        (_, first), (_, second) = asked
        assert first != second
        theirs.sendall(frame((Told.SETTLED, first)) + report_frame(StepReport(0.0, 0, 0, [StartedEvent("a", 0.0)])))
        events: list[StepEvent] = []
        run = asyncio.create_task(link.run(events.extend))
        await until(lambda: events)
        assert not waiting.done()
        theirs.sendall(frame((Told.SETTLED, second)) + frame((Told.ENDED,)))
        await asyncio.gather(waiting, run)
    with pytest.raises(EngineLost, match="has stopped"):
        await link.settled()


def commands_of(channel: socket.socket, count: int) -> list[tuple[Command, object]]:
    """So many commands, as the engine hears them."""
    frames, heard = Frames(), list[tuple[Command, object]]()
    while len(heard) < count:
        heard += frames.feed(channel.recv(1 << 16))
    return heard


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, new_event_loop])
def test_an_error_of_who_takes_the_events_is_no_death_of_the_engine(
    progress: Progress, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """It comes out of `run` as it is, with its traceback: who reads the log must not look at the engine."""

    def fail(_: Sequence[StepEvent]) -> None:
        raise AssertionError("a token came out of turn")

    async def serve() -> None:
        async with linked(EngineDouble(), progress) as link:
            link.add(request("a", [1], 5))
            await link.run(fail)

    with asyncio.Runner(loop_factory=loop) as runner, pytest.raises(AssertionError, match="out of turn"):
        runner.run(serve())


async def test_events_of_every_kind_arrive_as_they_were(progress: Progress) -> None:
    """Texts that are no UTF-8 by themselves, alternatives, ends, in one piece or byte by byte."""
    top = (TokenLogprob(5, -0.25), TokenLogprob(6, float("-inf")))
    events: list[StepEvent] = [
        StartedEvent("a", 1.5),
        PromptLogprobsEvent("a", (PromptLogprob(4, -1.0, top),)),
        PrefilledEvent("a", 2.5),
        TokenEvent("a", 0, 0, 7, "\ud83d", -0.5),
        TokenEvent("a", 1, 3, 8, "é", -0.75, top),
        FinishEvent("a", 1, FinishReason.STOP_STRING, "x", "held"),
    ]
    sent = report_frame(StepReport(0.25, 3, 1, events)) + frame(("told", 1))
    for size in (1, 7, len(sent)):
        frames = Frames()
        heard = [each for start in range(0, len(sent), size) for each in frames.feed(sent[start : start + size])]
        assert heard == [StepReport(0.25, 3, 1, events), ("told", 1)]
    assert b"TokenLogprob" not in sent, "what comes by the thousand is no pickle: each object in one takes 5 us"


@pytest.mark.parametrize("is_busy", [False, True])
async def test_an_engine_whose_server_is_gone_ends(progress: Progress, is_busy: bool) -> None:
    """In the midst of its work or asleep: nobody would publish what it makes."""
    ours, theirs = socket.socketpair()
    engine = EngineDouble()
    if is_busy:
        engine.add(request("a", [1], 1_000_000))
    with theirs:
        loop = asyncio.create_task(asyncio.to_thread(EngineLoop(engine, theirs, progress).run))
        await until(lambda: engine.num_probes + engine.num_steps > 0)
        ours.close()
        with pytest.raises(ServerGone):
            await loop
    assert progress.has_work == 0


def test_an_engine_that_fails_says_why_though_nobody_listens(progress: Progress) -> None:
    """Its own log is where the cause stands then."""
    ours, theirs = socket.socketpair()
    engine = EngineDouble(pace=ours.close)
    engine.add(request("a", [BROKEN], 5))
    with theirs, pytest.raises(RuntimeError, match="the device is lost"):
        EngineLoop(engine, theirs, progress).run()
