"""The engine process: loads the model, then claims, runs and publishes until it is told to stop.

`python -m worker.serve WORKER_ID PROGRESS_FD`, started by the supervisor, which also ends it.
"""

import asyncio
import gc
import signal
import sys
import time
from collections.abc import Callable

import structlog

from contract import exit_status
from contract.broker import Broker, ServerUnfit
from contract.event_loop import new_event_loop
from telemetry.logs import start_logging
from telemetry.metrics import Endpoint, start_metrics
from telemetry.setup import start_tracing
from worker.announcer import Announcer
from worker.attempt import Attempt
from worker.cancels import watch_cancels
from worker.claim import Claimer
from worker.drain import drain
from worker.engine_thread import EngineThread
from worker.holdings import Holdings, Parting
from worker.metrics import StepMeter, record_parting
from worker.progress import Progress, WorkerState
from worker.publish import Publisher
from worker.reconcile import Reconciler
from worker.retry import until_answered
from worker.served import Served
from worker.settings import WorkerSettings, read_settings
from worker.spans import record_attempt
from worker.supervisor_metrics import ENGINE_HOST
from worker.take import Taker

log = structlog.get_logger(__name__)

SERVICE_NAME = "llamaherd-worker"
TURN_S = 0.2
LOCK_TURN_S = 0.0002  # a thread that needs the interpreter's lock gets it so soon

Load = Callable[[WorkerSettings, Progress], Served]


async def serve(
    served: Served, settings: WorkerSettings, broker: Broker, worker_id: str, progress: Progress, stop: asyncio.Event
) -> None:
    """Serve until `stop`, then finish or hand back what is held. Crashes if any part crashes."""
    engine = EngineThread(StepMeter(served.engine, settings.served_name, progress), progress)

    def parted(attempt: Attempt, parting: Parting) -> None:
        record_attempt(attempt, parting, worker_id)
        record_parting(attempt, parting)

    holdings = Holdings(settings.max_sequences, engine, progress, parted)
    publisher = Publisher(broker, holdings, engine, max_unpublished_tokens=settings.max_unpublished_tokens)
    taker = Taker(broker, worker_id, settings.served_name, served.bundle, holdings, engine, publisher)
    claimer = Claimer(broker, worker_id, settings.served_name, holdings, engine, taker)
    reconciler = Reconciler(broker, worker_id, settings.served_name, holdings, publisher)
    announcer = Announcer(broker, settings.served_name, served.bundle)

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


def run_process(load: Load, worker_id: str, progress_fd: int) -> int:
    """Load and serve; return the process' exit status.

    Args:
        load: builds what is served; see worker.load.
        progress_fd: the page of counters; see worker.progress.
    """
    settings = read_settings()
    sys.setswitchinterval(LOCK_TURN_S)
    start_logging(SERVICE_NAME, settings.log_level)
    stop_tracing = start_tracing(SERVICE_NAME)
    metrics = start_metrics(SERVICE_NAME, Endpoint(ENGINE_HOST, 0) if settings.metrics_port else None)
    progress = Progress(progress_fd)
    progress.metrics_port = metrics.port
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))  # while loading nothing is held
    try:
        return _load_and_serve(load, settings, worker_id, progress)
    finally:
        metrics.stop()
        stop_tracing()


def _load_and_serve(load: Load, settings: WorkerSettings, worker_id: str, progress: Progress) -> int:
    started_s = time.monotonic()
    try:
        served = load(settings, progress)
    except (ValueError, OSError) as error:
        log.error("model cannot be served", model_path=str(settings.model_path), error=str(error))
        return exit_status.UNFIT
    log.info("loaded", model=settings.served_name, load_s=round(time.monotonic() - started_s, 3))
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(_serve_until_signal(served, settings, worker_id, progress))
    except ServerUnfit as error:
        log.error("redis cannot be used", error=str(error))
        return exit_status.UNFIT
    except Exception:
        log.exception("engine process crashed", worker_id=worker_id)
        return exit_status.CRASHED
    log.info("drained", worker_id=worker_id)
    return 0


async def _serve_until_signal(served: Served, settings: WorkerSettings, worker_id: str, progress: Progress) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    broker = Broker.connect(settings.redis_url)
    try:
        await serve(served, settings, broker, worker_id, progress, stop)
    finally:
        await broker.close()


def main() -> int:
    """Parse the supervisor's arguments and run with the real engine."""
    gc.disable()  # of what is loaded nothing is garbage, and looking for it took a tenth of the time; `load` enables it
    from worker.load import load  # torch: only this process loads it, and only here

    worker_id, progress_fd = sys.argv[1:]
    return run_process(load, worker_id, int(progress_fd))


if __name__ == "__main__":
    sys.exit(main())
