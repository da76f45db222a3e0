"""`python -m service`: one gateway, set up by HERD_GATEWAY_* variables, until SIGTERM or SIGINT."""

import asyncio
import os
import signal
import sys

import structlog

from contract import exit_status
from contract.broker import ServerUnfit
from contract.event_loop import freeze_loaded, new_event_loop
from service.gateway import serve
from service.open_files import allow_connections
from service.settings import GatewaySettings
from telemetry.environment import WrongSettings, read
from telemetry.logs import start_logging
from telemetry.metrics import endpoint, start_metrics
from telemetry.setup import start_tracing

SERVICE_NAME = "llamaherd-gateway"

log = structlog.get_logger(__name__)


def main() -> int:
    """Run; the exit status."""
    try:
        settings = read(GatewaySettings, os.environ)
    except WrongSettings as error:
        print(error, file=sys.stderr)
        return exit_status.UNFIT
    start_logging(SERVICE_NAME, settings.log_level)
    allow_connections(settings.max_connections)
    stop_tracing = start_tracing(SERVICE_NAME)
    try:
        metrics = start_metrics(SERVICE_NAME, endpoint(settings.metrics_host, settings.metrics_port))
    except OSError as error:
        log.error("metrics cannot be served", host=settings.metrics_host, port=settings.metrics_port, error=str(error))
        return 1
    freeze_loaded()
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(_run(settings))
    except ServerUnfit as error:
        log.error("redis cannot be used", error=str(error))
        return exit_status.UNFIT
    except (OSError, RuntimeError) as error:
        log.error("gateway cannot run", error=str(error))
        return 1
    finally:
        metrics.stop()
        stop_tracing()
    return 0


async def _run(settings: GatewaySettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def drain() -> None:
        stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)  # a second one ends the process at once

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, drain)
    await serve(settings, stop)


if __name__ == "__main__":
    sys.exit(main())
