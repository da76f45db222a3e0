"""The engine on its own thread: commands in, events out in order, a crash comes out."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from tests.until import until
from tests.worker.engine_double import BROKEN, REFUSED, EngineDouble, expected_ids
from worker.engine.sequence import (
    FinishEvent,
    FinishReason,
    GenerationRequest,
    SamplingParams,
    StepEvent,
    StoppingParams,
    TokenEvent,
)
from worker.engine_thread import EngineThread
from worker.progress import Progress


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
async def running(thread: EngineThread) -> AsyncIterator[list[StepEvent]]:
    """The thread at work; gives the growing list of its events."""
    events: list[StepEvent] = []
    run = asyncio.create_task(thread.run(events.extend))
    try:
        yield events
    finally:
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run


def ids_of(events: Sequence[StepEvent], generation_id: str) -> list[int]:
    """The tokens of one generation."""
    return [each.token_id for each in events if isinstance(each, TokenEvent) and each.generation_id == generation_id]


async def test_every_event_is_delivered_in_order(progress: Progress) -> None:
    """Two generations run side by side; each gets its own tokens, then its end."""
    thread = EngineThread(EngineDouble(), progress)
    async with running(thread) as events:
        thread.add(request("a", [1], 20))
        thread.add(request("b", [2], 30))
        await until(lambda: sum(isinstance(each, FinishEvent) for each in events) == 2)

    assert ids_of(events, "a") == expected_ids([1], 20)
    assert ids_of(events, "b") == expected_ids([2], 30)
    assert isinstance(events[-1], FinishEvent)


async def test_one_hop_to_the_loop_per_step(progress: Progress) -> None:
    """However many generations a step advances, its events come together."""
    calls: list[int] = []
    engine = EngineDouble()
    thread = EngineThread(engine, progress)
    for number in range(8):
        engine.add(request(str(number), [number + 1], 5))
    run = asyncio.create_task(thread.run(lambda events: calls.append(len(events))))
    await until(lambda: engine.num_requests == 0 and len(calls) == 5)
    thread.stop()
    await run

    assert sum(calls) == 8 * (5 + 3)  # tokens, started, prefilled, finished


async def test_stop_ends_at_a_step_border_with_everything_delivered(progress: Progress) -> None:
    """What the last step made is delivered before `run` returns."""
    engine = EngineDouble()
    thread = EngineThread(engine, progress)
    events: list[StepEvent] = []
    run = asyncio.create_task(thread.run(events.extend))
    thread.add(request("a", [1], 1_000_000))
    await until(lambda: len(events) > 100)
    thread.stop()
    await run

    made = ids_of(events, "a")
    assert len(made) == engine.num_steps
    assert made == expected_ids([1], len(made))


async def test_a_refused_request_fails_alone(progress: Progress) -> None:
    """The refusal is an event like any other; the neighbour is not touched."""
    thread = EngineThread(EngineDouble(), progress)
    async with running(thread) as events:
        thread.add(request("bad", [REFUSED], 5))
        thread.add(request("good", [1], 5))
        await until(lambda: sum(isinstance(each, FinishEvent) for each in events) == 2)

    ends = {each.generation_id: each for each in events if isinstance(each, FinishEvent)}
    assert ends["bad"].reason is FinishReason.FAILED
    assert ends["bad"].error == "this prompt is refused"
    assert ends["good"].reason is FinishReason.LENGTH


async def test_an_exception_out_of_the_engine_comes_out_of_run(progress: Progress) -> None:
    """Nothing in the process can be trusted then: it goes down, and says why."""
    thread = EngineThread(EngineDouble(), progress)
    thread.add(request("x", [BROKEN], 5))
    with pytest.raises(RuntimeError, match="the device is lost"):
        await thread.run(lambda _: None)
    assert progress.has_work == 0


async def test_a_held_generation_makes_no_step_and_goes_on_later(progress: Progress) -> None:
    """A hold stops the tokens and lets the thread sleep; lifting it continues where it stopped."""
    gate = threading.Semaphore(0)
    thread = EngineThread(EngineDouble(pace=lambda: bool(gate.acquire())), progress)
    async with running(thread) as events:
        thread.add(request("a", [1], 6))
        await until(lambda: progress.has_work == 1)
        thread.hold("a", True)
        gate.release()
        await until(lambda: progress.has_work == 0)
        made = len(ids_of(events, "a"))
        gate.release(10)
        thread.hold("a", False)
        await until(lambda: any(isinstance(each, FinishEvent) for each in events))

    assert made == 1
    assert ids_of(events, "a") == expected_ids([1], 6)


async def test_an_idle_device_is_probed_again_and_again(progress: Progress, monkeypatch: pytest.MonkeyPatch) -> None:
    """First of all, and whenever it was not used for a while; each time the supervisor can see when that was."""
    monkeypatch.setattr("worker.engine_thread.PROBE_AFTER_S", 0.02)
    engine = EngineDouble()
    assert progress.device_ms == 0
    async with running(EngineThread(engine, progress)):
        await until(lambda: engine.num_probes >= 1 and progress.device_ms > 0)
        first_ms = progress.device_ms
        await until(lambda: engine.num_probes >= 5)
        assert progress.device_ms > first_ms
        assert engine.num_steps == 0


async def test_a_device_in_use_is_not_probed(progress: Progress) -> None:
    """A step says the same, and costs nothing more."""
    engine = EngineDouble()
    thread = EngineThread(engine, progress)
    async with running(thread) as events:
        await until(lambda: engine.num_probes == 1)
        used_ms = progress.device_ms
        thread.add(request("a", [1], 1_000_000))
        await until(lambda: len(events) > 100 and progress.device_ms > used_ms)
        assert engine.num_probes == 1


async def test_a_probe_that_hangs_shows_as_work_that_stands_still(progress: Progress) -> None:
    """So the supervisor ends it as it ends a step that hangs."""
    hanging = threading.Semaphore(0)
    engine = EngineDouble(on_probe=lambda: bool(hanging.acquire()))
    async with running(EngineThread(engine, progress)):
        await until(lambda: engine.num_probes == 1)
        assert (progress.has_work, progress.device_ms) == (1, 0)
        hanging.release()
        await until(lambda: progress.has_work == 0)
        assert progress.device_ms > 0


async def test_a_probe_that_fails_ends_the_thread(progress: Progress) -> None:
    """A lost device does not come back within the process."""

    def fail() -> None:
        raise RuntimeError("the device is lost")

    with pytest.raises(RuntimeError, match="the device is lost"):
        await EngineThread(EngineDouble(on_probe=fail), progress).run(lambda _: None)
    assert progress.has_work == 0


async def test_counters_tell_the_supervisor_what_the_thread_does(progress: Progress) -> None:
    """Steps are counted, and work is shown while there is some."""
    engine = EngineDouble()
    thread = EngineThread(engine, progress)
    async with running(thread) as events:
        thread.add(request("a", [1], 7))
        await until(lambda: any(isinstance(each, FinishEvent) for each in events))
        await until(lambda: progress.has_work == 0)
        assert progress.num_steps == engine.num_steps == 7
