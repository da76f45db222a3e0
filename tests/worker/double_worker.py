"""A whole worker with the engine double: `python -m tests.worker.double_worker`, in place of `python -m worker`."""

import sys

from worker.__main__ import main

if __name__ == "__main__":
    sys.exit(main(engine_command=(sys.executable, "-m", "tests.worker.double_engine_process")))
