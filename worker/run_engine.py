"""The engine process: loads the model, then steps it as the serving process asks, and does nothing else.

`python -m worker.run_engine PROGRESS_FD CHANNEL_FD`, started by the supervisor, which also ends it. It shares no
interpreter lock with what claims and publishes: queueing a long prompt's kernels takes milliseconds of Python, in which
nothing would be published, and whatever is published would take them from the device.
"""

import gc
import signal
import socket
import sys
import time
from collections.abc import Callable

import structlog

from contract import exit_status
from telemetry.logs import start_logging
from worker.engine_loop import EngineLoop, ServerGone, Told
from worker.engine_wire import frame
from worker.progress import Progress
from worker.served import Served
from worker.settings import WorkerSettings, read_settings

log = structlog.get_logger(__name__)

SERVICE_NAME = "llamaherd-engine"

Load = Callable[[WorkerSettings, Progress], Served]


def run_engine(load: Load, progress_fd: int, channel_fd: int) -> int:
    """Load and step; return the process' exit status.

    Args:
        load: builds what is served; see worker.load.
        progress_fd: the page of counters; see worker.progress.
        channel_fd: our end of the socket pair.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # to all of a worker at once: what serves drains, and needs us for it
    settings = read_settings()
    start_logging(SERVICE_NAME, settings.log_level)
    progress, channel = Progress(progress_fd), socket.socket(fileno=channel_fd)
    started_s = time.monotonic()
    try:
        served = load(settings, progress)
    except (ValueError, OSError) as error:
        log.error("model cannot be served", model_path=str(settings.model_path), error=str(error))
        return exit_status.UNFIT
    except Exception:
        log.exception("model could not be loaded", model_path=str(settings.model_path))
        return exit_status.CRASHED
    log.info("loaded", model=settings.served_name, load_s=round(time.monotonic() - started_s, 3))
    try:
        channel.sendall(frame((Told.LOADED, served.bundle.to_bytes())))
        EngineLoop(served.engine, channel, progress).run()
    except (ServerGone, BrokenPipeError, ConnectionResetError):
        return exit_status.PARTNER_GONE
    except Exception:
        log.exception("engine crashed")
        return exit_status.CRASHED
    return 0


def main() -> int:
    """Parse the supervisor's arguments and run the real engine."""
    gc.disable()  # of what is loaded nothing is garbage, and looking for it took a tenth of the time; `load` enables it
    from worker.load import load  # torch: only this process loads it, and only here

    progress_fd, channel_fd = map(int, sys.argv[1:])
    return run_engine(load, progress_fd, channel_fd)


if __name__ == "__main__":
    sys.exit(main())
