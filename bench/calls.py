"""What one call to Redis costs: as redis-py makes it, as contract/line.py does, and what is left without either.

    python -m bench.calls

The call is the protocol's shortest script, on a valkey of its own, by a unix socket. `bare` packs, writes and reads by
hiredis on the event loop, and knows no timeout, error or lost connection.
"""

import argparse
import asyncio
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hiredis

from contract import connection, keys
from contract.broker import Broker
from contract.connection import answered
from contract.event_loop import new_event_loop
from contract.lifetime import spawn
from contract.scripts import load_script
from herd.valkey import server_command

AT_ONCE = (1, 16)
WARM_UP = 200

Call = Callable[[], Awaitable[Any]]


class Bare(asyncio.Protocol):
    """Requests and replies, and nothing else."""

    def __init__(self) -> None:
        self._replies = hiredis.Reader()
        self._places: list[asyncio.Future[Any]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self._transport: Any = transport

    def data_received(self, chunk: bytes) -> None:
        """Each reply to whose turn it is."""
        self._replies.feed(chunk)
        while (reply := self._replies.gets()) is not False:
            self._places.pop(0).set_result(reply)

    async def call(self, *command: Any) -> Any:
        """The reply."""
        place: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._places.append(place)
        self._transport.write(hiredis.pack_command(command))
        return await place


async def measure(call: Call, at_once: int, rounds: int) -> tuple[float, float, float]:
    """Wall time of a round, median and lower quartile, and CPU time of this process for one call; microseconds."""
    walls: list[float] = []
    cpu_s = time.process_time()
    for _ in range(rounds):
        began_s = time.perf_counter()
        if at_once == 1:
            await call()
        else:
            await asyncio.gather(*(call() for _ in range(at_once)))
        walls.append(time.perf_counter() - began_s)
    cpu_s = time.process_time() - cpu_s
    lower, median, _ = statistics.quantiles(walls, n=4)
    return median * 1e6, lower * 1e6, cpu_s / rounds / at_once * 1e6


async def compare(socket: Path, rounds: int) -> None:
    """One row for each way and number at once."""
    url = f"unix://{socket}"
    broker = Broker.connect(url)
    client: Any = connection.connect(url)
    _, bare = await asyncio.get_running_loop().create_unix_connection(Bare, str(socket))
    command = ("EVALSHA", load_script("now").sha1, 1, keys.META)
    await broker.now_ms()  # from here on the server has the script

    async def by_redis_py() -> None:
        async with answered():
            await client.execute_command(*command)

    ways: dict[str, Call] = {"bare": lambda: bare.call(*command), "line": broker.now_ms, "redis-py": by_redis_py}
    print("| way | at once | wall p50 / p25, µs | CPU a call, µs |\n|---|---|---|---|")
    for at_once in AT_ONCE:
        for name, call in ways.items():
            await measure(call, at_once, WARM_UP)
            median, lower, cpu = await measure(call, at_once, rounds)
            print(f"| {name} | {at_once} | {median:.0f} / {lower:.0f} | {cpu:.1f} |")
    await broker.close()
    await client.aclose()


def main() -> None:
    """Parse, start a valkey, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3000)
    rounds = parser.parse_args().rounds
    with TemporaryDirectory(prefix="bench-") as folder:
        socket = Path(folder) / "v.sock"
        redis = spawn(server_command(socket, Path(folder)), stdout=subprocess.DEVNULL)
        try:
            while not socket.exists():
                time.sleep(0.01)
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                runner.run(compare(socket, rounds))
        finally:
            redis.kill()
            redis.wait()


if __name__ == "__main__":
    main()
