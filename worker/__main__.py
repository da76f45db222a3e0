"""`python -m worker`: one worker. The settings are HERD_WORKER_* variables; SIGTERM drains, a second signal ends."""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence

import structlog

from contract import exit_status
from contract.broker import Broker, ServerUnfit
from telemetry.environment import WrongSettings, read
from telemetry.logs import start_logging
from telemetry.metrics import endpoint, start_metrics
from worker.settings import WorkerSettings
from worker.supervisor import Supervisor

SERVICE_NAME = "llamaherd-worker-supervisor"
ENGINE_COMMAND = (sys.executable, "-m", "worker.serve")

log = structlog.get_logger(__name__)


def main(engine_command: Sequence[str] = ENGINE_COMMAND) -> int:
    """Run a worker; return the exit status.

    Args:
        engine_command: starts the engine process.
    """
    try:
        settings = read(WorkerSettings, os.environ)
    except WrongSettings as error:
        print(error, file=sys.stderr)
        return exit_status.UNFIT
    start_logging(SERVICE_NAME, settings.log_level)
    try:
        return asyncio.run(_supervise(settings, engine_command))
    except ServerUnfit as error:
        log.error("redis cannot be used", error=str(error))
        return exit_status.UNFIT


async def _supervise(settings: WorkerSettings, engine_command: Sequence[str]) -> int:
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
            metrics = start_metrics(SERVICE_NAME, where, more=supervisor.meter.engine_text)
        except OSError as error:
            log.error(
                "metrics cannot be served", host=settings.metrics_host, port=settings.metrics_port, error=str(error)
            )
            return exit_status.UNFIT
        try:
            return await supervisor.run(stop, force)
        finally:
            metrics.stop()
    finally:
        await broker.close()


if __name__ == "__main__":
    sys.exit(main())
