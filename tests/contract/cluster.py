"""Real servers on TCP ports: a cluster of three masters with every slot assigned, or one that is no cluster."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from contract.lifetime import spawn
from herd.valkey import find_server_binary
from tests.ports import free_ports
from tests.until import until_now

NUM_NODES = 3
NUM_SLOTS = 16384


@dataclass(frozen=True, slots=True)
class RunningCluster:
    """The nodes' processes by port, and the URL of one of them."""

    url: str
    processes: "dict[int, subprocess.Popen[bytes]]"


@contextmanager
def start_cluster(folder: Path) -> Iterator[RunningCluster]:
    """Start the nodes, join them, wait until each calls the cluster whole."""
    with ExitStack() as stack:
        free = stack.enter_context(free_ports(2 * NUM_NODES))
        ports, bus_ports = free[:NUM_NODES], free[NUM_NODES:]
        processes = {}
        for port, bus_port in zip(ports, bus_ports, strict=True):
            options = ["--cluster-enabled", "yes", "--cluster-port", str(bus_port)]
            options += ["--cluster-announce-ip", "127.0.0.1", "--cluster-node-timeout", "2000"]
            processes[port] = stack.enter_context(_start(folder / str(port), port, options))
        nodes = [stack.enter_context(closing(redis.Redis(port=port))) for port in ports]
        _join(nodes, ports, bus_ports)
        until_now(lambda: all(_is_whole(node) for node in nodes), what="the cluster is whole")
        yield RunningCluster(f"redis+cluster://127.0.0.1:{ports[0]}", processes)


@contextmanager
def start_single(folder: Path) -> Iterator[int]:
    """A server that is no cluster; its port."""
    with free_ports(1) as [port], _start(folder / str(port), port, []):
        yield port


@contextmanager
def _start(folder: Path, port: int, options: list[str]) -> "Iterator[subprocess.Popen[bytes]]":
    folder.mkdir()
    command = [
        find_server_binary(),
        *("--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--appendonly", "no"),
        *("--maxmemory-policy", "noeviction", "--daemonize", "no", *options),
    ]
    process = spawn(command, stdout=subprocess.DEVNULL)
    try:
        with closing(redis.Redis(port=port)) as client:
            until_now(lambda: _answers(client), what="the server answers")
        yield process
    finally:
        process.kill()
        process.wait()


def _answers(node: redis.Redis) -> bool:
    try:
        return bool(node.ping())
    except redis.ConnectionError:
        return False


def _join(nodes: list[Any], ports: list[int], bus_ports: list[int]) -> None:
    for number, node in enumerate(nodes):
        first, last = (NUM_SLOTS * k // NUM_NODES for k in (number, number + 1))
        node.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last - 1)
        node.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
    for port, bus_port in zip(ports[1:], bus_ports[1:], strict=True):
        nodes[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port, bus_port)


def _is_whole(node: Any) -> bool:
    """Whether this node knows all the others and their slots."""
    facts = node.execute_command("CLUSTER", "INFO")
    lines = facts.decode().split() if isinstance(facts, bytes) else [f"{k}:{v}" for k, v in facts.items()]
    wanted = {"cluster_state:ok", f"cluster_slots_ok:{NUM_SLOTS}", f"cluster_size:{NUM_NODES}"}
    return wanted <= set(lines)
