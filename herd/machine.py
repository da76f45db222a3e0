"""What `herd up` asks of its machine: a folder, a port, GPUs; and whether its broker answers yet."""

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

LOOK_S = 0.02


@contextmanager
def run_folder() -> Iterator[Path]:
    """A private folder with a short path (a unix socket's must stay under 108 bytes), gone at the end."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(tempfile.mkdtemp(prefix="herd-", dir=base if base and os.access(base, os.W_OK) else None))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def reserved_port(host: str, port: int) -> Iterator[int]:
    """Hold `port` (0: a free one) for the gateways, which bind it again with SO_REUSEPORT.

    A bound socket that never listens gets no connections, so this neither races nor steals.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        if port:
            with socket.socket(family, socket.SOCK_STREAM) as probe:  # without SO_REUSEPORT: is it really free?
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, port))
                except OSError as error:
                    why = f"{error.strerror}; --port takes another, 0 a free one"
                    raise OSError(f"{host} port {port}: {why}") from None
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
        yield int(holder.getsockname()[1])


async def until_answers(path: Path) -> None:
    """Return once a Redis answers on this socket."""
    while True:
        if await _answers(path):
            return
        await asyncio.sleep(LOOK_S)


async def _answers(path: Path) -> bool:
    """Whether a Redis on this socket answers PING with PONG (it says LOADING while it reads its file)."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(path))
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        async with asyncio.timeout(1):
            return await reader.readline() == b"+PONG\r\n"
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name: the GPUs that this process was given, else all that the driver lists.

    CUDA ends the list at the first name that stands for no device, so that '' and '-1' hide all.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return list(takewhile(lambda name: name not in ("", "-1"), map(str.strip, given.split(","))))
    listing = Path("/proc/driver/nvidia/gpus")  # torch is not needed for that
    return [str(number) for number in range(len(list(listing.iterdir())))] if listing.is_dir() else []
