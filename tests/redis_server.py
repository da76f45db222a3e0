"""Real servers for tests: valkey from the wheel, and Debian's redis-server, each on a unix socket of its own."""

import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import redis

from contract.lifetime import spawn
from herd.valkey import server_command


@dataclass(slots=True)
class RunningServer:
    """A server process and where it answers. `kill` and `start` are a crash and a restart over the same files."""

    url: str
    command: list[str]
    path: Path
    process: "subprocess.Popen[bytes]"

    def settle(self) -> None:
        """Before a kill that is to lose nothing: return once all that was answered is in the file.

        While that is synced, writes to it are put off for up to 2 s. No new ones are answered meanwhile.
        """
        with redis.Redis.from_url(self.url) as client:
            client.client_pause(5000, all=False)
            while client.info("persistence")["aof_buffer_length"]:
                time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait()

    def forget(self) -> None:
        """While it is killed: the next start finds no append-only file."""
        shutil.rmtree(self.path.parent / "appendonlydir")

    def start(self) -> None:
        """Start again over the same append-only file."""
        self.process = _start(self.command, self.path)


def start_valkey(folder: Path) -> RunningServer:
    """The valkey-server that `herd up` runs, with its settings. `folder` must have a short path."""
    path = folder / "v.sock"
    return _run(server_command(path, folder), path)


def start_redis(folder: Path) -> RunningServer:
    """Debian's redis-server with the same settings."""
    path = folder / "r.sock"
    binary = shutil.which("redis-server")
    assert binary, "install the packages of scripts/apt-packages.txt"
    return _run([binary, *server_command(path, folder)[1:]], path)


def _run(command: list[str], path: Path) -> RunningServer:
    return RunningServer(f"unix://{path}", command, path, _start(command, path))


def _start(command: list[str], path: Path) -> "subprocess.Popen[bytes]":
    """Start, and wait until it answers PING with PONG."""
    process = spawn(command, stdout=subprocess.DEVNULL)
    while True:
        assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(path))
                client.sendall(b"PING\r\n")
                if client.recv(64) == b"+PONG\r\n":
                    return process
            except OSError:
                pass
        time.sleep(0.01)
