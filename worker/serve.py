"""The serving process: claims jobs, has the engine process run them and publishes what it makes, until told to stop.

`python -m worker.serve WORKER_ID PROGRESS_FD CHANNEL_FD`, started by the supervisor, which also ends it.
"""

import asyncio
import signal
import socket
import sys

import structlog

from contract import exit_status
from contract.broker import Broker, ServerUnfit
from contract.bundle import ModelBundle
from contract.event_loop import freeze_loaded, new_event_loop
from telemetry.logs import start_logging
from telemetry.metrics import Endpoint, start_metrics
from telemetry.setup import start_tracing
from worker.announcer import Announcer
from worker.attempt import Attempt
from worker.cancels import watch_cancels
from worker.claim import Claimer
from worker.drain import drain
from worker.engine_link import EngineLink, EngineLost
from worker.holdings import Holdings, Parting
from worker.metrics import record_parting, start_counts
from worker.progress import Progress, WorkerState
from worker.publish import Publisher
from worker.reconcile import Reconciler
from worker.retry import until_answered
from worker.settings import WorkerSettings, read_settings
from worker.spans import record_attempt
from worker.step_meter import StepMeter
from worker.supervisor_metrics import SERVING_HOST
from worker.take import Taker

log = structlog.get_logger(__name__)

SERVICE_NAME = "llamaherd-worker"
TURN_S = 0.2
LOCK_TURN_S = 0.0002  # threads that send traces and tell metrics hand the interpreter's lock over so soon


async def serve(
    bundle: ModelBundle,
    engine: EngineLink,
    settings: WorkerSettings,
    broker: Broker,
    worker_id: str,
    progress: Progress,
    stop: asyncio.Event,
) -> None:
    """Serve until `stop`, then finish or hand back what is held. Crashes if any part crashes."""

    def parted(attempt: Attempt, parting: Parting) -> None:
        record_attempt(attempt, parting, worker_id)
        record_parting(attempt, parting)

    start_counts(settings.served_name)
    holdings = Holdings(settings.max_sequences, engine, progress, parted)
    publisher = Publisher(broker, holdings, engine, max_unpublished_tokens=settings.max_unpublished_tokens)
    taker = Taker(broker, worker_id, settings.served_name, bundle, holdings, engine, publisher)
    claimer = Claimer(broker, worker_id, settings.served_name, holdings, engine, taker)
    reconciler = Reconciler(broker, worker_id, settings.served_name, holdings, publisher)
    announcer = Announcer(broker, settings.served_name, bundle)

    await until_answered(broker.check_server)
    await announcer.announce()
    progress.state = WorkerState.READY
    async with asyncio.TaskGroup() as group:
        stepping = group.create_task(engine.run(publisher.accept), name="engine")
        loops = [
            group.create_task(publisher.run(), name="publish"),
            group.create_task(reconciler.run(), name="reconcile"),
            group.create_task(watch_cancels(broker, worker_id, holdings, publisher), name="watch-cancels"),
            group.create_task(claimer.watch_wakes(), name="watch-wakes"),
            group.create_task(turn(progress), name="turn"),
            group.create_task(announcer.run(), name="announce"),
        ]
        await claimer.run(stop, group)
        progress.state = WorkerState.DRAINING
        await drain(holdings, engine, stepping, publisher, taker, timeout_s=settings.drain_timeout_s)
        for loop in loops:
            loop.cancel()


async def turn(progress: Progress) -> None:
    """Show the supervisor that the event loop turns, for ever."""
    while True:
        progress.num_turns += 1
        await asyncio.sleep(TURN_S)


def run_process(worker_id: str, progress_fd: int, channel_fd: int) -> int:
    """Serve what the engine process has loaded; return the process' exit status.

    Args:
        progress_fd: the page of counters; see worker.progress.
        channel_fd: our end of the socket pair.
    """
    settings = read_settings()
    sys.setswitchinterval(LOCK_TURN_S)
    start_logging(SERVICE_NAME, settings.log_level)
    stop_tracing = start_tracing(SERVICE_NAME)
    metrics = start_metrics(SERVICE_NAME, Endpoint(SERVING_HOST, 0) if settings.metrics_port else None)
    progress, channel = Progress(progress_fd), socket.socket(fileno=channel_fd)
    progress.metrics_port = metrics.port
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(_serve_until_signal(settings, worker_id, progress, channel))
    except ServerUnfit as error:
        log.error("redis cannot be used", error=str(error))
        return exit_status.UNFIT
    except EngineLost:
        return exit_status.PARTNER_GONE  # whose own words say why
    except Exception as error:
        if isinstance(error, ExceptionGroup) and error.subgroup(EngineLost):
            return exit_status.PARTNER_GONE
        log.exception("serving process crashed", worker_id=worker_id)
        return exit_status.CRASHED
    finally:
        metrics.stop()
        stop_tracing()
    log.info("drained", worker_id=worker_id)
    return 0


async def _serve_until_signal(
    settings: WorkerSettings, worker_id: str, progress: Progress, channel: socket.socket
) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    broker = Broker.connect(settings.redis_url)
    try:
        engine = await EngineLink.over(channel, StepMeter(settings.served_name, progress))
        if (bundle := await _loaded(engine, stop)) is not None:
            freeze_loaded()
            await serve(bundle, engine, settings, broker, worker_id, progress, stop)
    finally:
        await broker.close()


async def _loaded(engine: EngineLink, stop: asyncio.Event) -> ModelBundle | None:
    """What is to be served; None if told to stop first, when nothing is held."""
    loaded, stopping = asyncio.create_task(engine.loaded()), asyncio.create_task(stop.wait())
    await asyncio.wait([loaded, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if loaded.done():
        return await loaded
    loaded.cancel()
    return None


def main() -> int:
    """Parse the supervisor's arguments and serve."""
    worker_id, progress_fd, channel_fd = sys.argv[1:]
    return run_process(worker_id, int(progress_fd), int(channel_fd))


if __name__ == "__main__":
    sys.exit(main())
