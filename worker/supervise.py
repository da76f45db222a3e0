"""The supervisor's process: its event loop, signals, logs, metrics and connection to Redis."""

import asyncio
import signal
from collections.abc import Sequence

import structlog

from contract import exit_status
from contract.broker import Broker, ServerUnfit
from telemetry.logs import start_logging
from telemetry.metrics import endpoint, start_metrics
from worker.pair import ProcessPair
from worker.settings import WorkerSettings
from worker.supervisor import Supervisor

SERVICE_NAME = "llamaherd-worker-supervisor"

log = structlog.get_logger(__name__)


def supervise(settings: WorkerSettings, pair: ProcessPair, engine_command: Sequence[str]) -> int:
    """Attend a started pair of processes, and those after it; return the exit status.

    Args:
        pair: the caller closes it: this may return, or be ended, before it is attended.
        engine_command: starts the engine processes of the next ones.
    """
    start_logging(SERVICE_NAME, settings.log_level)
    try:
        return asyncio.run(_supervise(settings, pair, engine_command))
    except ServerUnfit as error:
        log.error("redis cannot be used", error=str(error))
        return exit_status.UNFIT


async def _supervise(settings: WorkerSettings, pair: ProcessPair, engine_command: Sequence[str]) -> int:
    stop, force = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            force.set()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    broker = Broker.connect(settings.redis_url)
    try:
        supervisor = Supervisor(settings, broker, engine_command)
        where = endpoint(settings.metrics_host, settings.metrics_port)
        try:
            metrics = start_metrics(SERVICE_NAME, where, more=supervisor.meter.serving_text)
        except OSError as error:
            log.error(
                "metrics cannot be served", host=settings.metrics_host, port=settings.metrics_port, error=str(error)
            )
            return exit_status.UNFIT
        try:
            return await supervisor.run(pair, stop, force)
        finally:
            metrics.stop()
    finally:
        await broker.close()
