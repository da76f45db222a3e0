"""`herd status` of a real herd: what stands there is what is the case, for people and for machines."""

import asyncio
import io
import json
import os
import pty
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE
from dataclasses import asdict, dataclass
from typing import Any

import grpc
import pytest
import redis.asyncio
from rich.console import Console

from contract.broker import Broker, GatewayBeat, QueueDepth, WorkerBeat
from herd.status import Drain, look
from herd.status_view import GatewayRow, Status, WorkerRow, view
from llamaherd.v1 import common_pb2, generation_pb2, generation_pb2_grpc
from tests.herd_process import ROOT, HerdProcess
from tests.redis_server import start_valkey
from tests.service.conftest import short_folder
from tests.until import until


@dataclass(frozen=True, slots=True)
class Ended:
    """What the command said, and how it ended."""

    status: int
    out: str
    err: str


async def herd_status(*arguments: str) -> Ended:
    """Run it as a program whose output is no terminal."""
    command = [sys.executable, "-m", "herd", "status", *arguments]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=PIPE, stderr=PIPE)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def as_json(herd: HerdProcess) -> Any:
    """The one object that it prints."""
    ended = await herd_status("--redis-url", herd.redis_url, "--json")
    assert ended.status == 0, ended.err
    return json.loads(ended.out)


def low_request(text: str) -> generation_pb2.GenerateRequest:
    """A greedy chat of one message that others go before."""
    message = common_pb2.ChatMessage(role=common_pb2.ROLE_USER, content=text)
    chat = common_pb2.ChatInput(messages=[message])
    spec = common_pb2.GenerationSpec(chat=chat, priority=common_pb2.PRIORITY_LOW)
    spec.sampling.temperature = 0
    return generation_pb2.GenerateRequest(spec=spec)


def gateway_of(herd_up: HerdProcess, said: Any) -> Any:
    """The herd's own; others that came to it with another test are told of for a while after they left."""
    (gateway,) = [each for each in said["gateways"] if each["address"] == herd_up.address]
    return gateway


async def test_an_idle_herd(herd_up: HerdProcess) -> None:
    """One gateway, one worker, nothing that waits."""

    async def is_idle() -> bool:
        said = await as_json(herd_up)
        return [each["running"] for each in said["workers"]] == [0]

    await until(is_idle, 60)
    said = await as_json(herd_up)

    gateway, (worker,) = gateway_of(herd_up, said), said["workers"]
    assert (gateway["address"], gateway["state"]) == (herd_up.address, "serving")
    assert gateway["pid"] == herd_up.pids["gateway"]
    assert (worker["model"], worker["state"], worker["device"]) == (herd_up.model, "ready", "cpu")
    assert worker["pid"] == herd_up.engine_pid("worker-0")
    assert (worker["running"], worker["sequences"], worker["kv_blocks_used"]) == (0, 0, 0)
    assert worker["kv_blocks"] > 0
    assert worker["slots"] > 0
    assert {(q["model"], q["job_class"]) for q in said["queues"]} >= {(herd_up.model, "high"), (herd_up.model, "low")}
    assert all((q["waiting"], q["estimated_wait_s"]) == (0, 0.0) for q in said["queues"])


async def test_a_busy_herd(herd_up: HerdProcess) -> None:
    """More than the worker has slots for: what runs, what waits, and how long that may take."""
    before = (await as_json(herd_up))["workers"][0]
    asks = [low_request("Count to one hundred") for _ in range(3 * before["slots"])]
    seen: list[Any] = []
    async with grpc.aio.insecure_channel(herd_up.address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        calls = [stub.Generate(ask, timeout=100) for ask in asks]

        async def is_busy() -> bool:
            seen.append(await as_json(herd_up))
            (queue,) = [each for each in seen[-1]["queues"] if each["job_class"] == "low"]
            return bool(seen[-1]["workers"][0]["tokens_per_s"] and queue["waiting"])

        await until(is_busy, 60)
        for call in calls:
            call.cancel()
    said = seen[-1]

    (worker,), gateway = said["workers"], gateway_of(herd_up, said)
    assert 0 < worker["running"] <= worker["slots"]
    assert 0 < worker["kv_blocks_used"] <= worker["kv_blocks"]
    assert worker["tokens"] > before["tokens"]
    assert worker["attempts"] > before["attempts"]
    assert gateway["streams"] > 0


async def test_people_get_tables(herd_up: HerdProcess) -> None:
    """Once, where the output is no terminal; the variable of the gateways is enough."""
    ended = await herd_status("--redis-url", herd_up.redis_url)

    assert ended.status == 0
    for word in (herd_up.address, herd_up.model, "ready", "serving", "high", "normal", "low", "0 jobs were set aside"):
        assert word in ended.out


def test_a_terminal_is_kept_up_to_date(herd_up: HerdProcess) -> None:
    """It looks again and again until it is interrupted, which is no error."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "HERD_GATEWAY_REDIS_URL": herd_up.redis_url, "TERM": "xterm", "COLUMNS": "160"}
    process = subprocess.Popen([sys.executable, "-m", "herd", "status"], cwd=ROOT, env=env, stdout=theirs)
    os.close(theirs)
    try:
        shown = ""
        while shown.count(herd_up.address) < 2:
            shown += os.read(ours, 65536).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        read_rest(ours)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_rest(fd: int) -> None:
    """All that a terminal still shows, until its other side closes."""
    try:
        while os.read(fd, 65536):
            pass
    except OSError:
        return


async def test_without_a_redis_it_says_so() -> None:
    """And ends with 1."""
    ended = await herd_status("--redis-url", "unix:///nowhere/v.sock", "--json")

    assert (ended.status, ended.out) == (1, "")
    assert "unix:///nowhere/v.sock" in ended.err


def test_the_wait_is_what_waits_by_what_drains() -> None:
    """Measured between looks; nothing drains: nobody knows; nothing waits: no wait."""
    drain, at = Drain(), ("m", "low")
    drain.add({at: QueueDepth(6, 0, 2, 10)}, now_s=0.0)
    assert drain.row(*at).estimated_wait_s is None

    drain.add({at: QueueDepth(5, 1, 2, 14)}, now_s=2.0)
    row = drain.row(*at)
    assert (row.waiting, row.held, row.drained_per_s, row.estimated_wait_s) == (6, 2, 2.0, 3.0)

    drain.add({at: QueueDepth(0, 0, 2, 20)}, now_s=40.0)
    assert drain.row(*at).estimated_wait_s == 0.0


def test_a_process_that_says_nothing_any_more_is_told_silent() -> None:
    """Also one of an earlier version, which says less."""
    worker = WorkerRow.of(WorkerBeat("w" * 32, "3", {"model": "m", "state": "ready"}, at_ms=1_000), now_ms=9_000)
    gateway = GatewayRow.of(GatewayBeat("g" * 32, {}, at_ms=8_900), now_ms=9_000)
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(view(Status([gateway], [worker], [], 2, [])))
    shown = console.export_text()

    assert "silent (ready)" in shown
    assert "8.0 s" in shown
    assert "2 jobs were set aside" in shown
    assert "promise" not in shown


async def test_a_redis_that_breaks_a_promise_is_told(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In words for people, and as a list for machines; also where no gateway and no worker could start."""
    server = start_valkey(short_folder(tmp_path_factory))
    broker = Broker.connect(server.url)
    client: Any = redis.asyncio.Redis.from_url(server.url)
    await client.config_set("appendonly", "no")
    await client.config_set("maxmemory-policy", "volatile-lru")
    status = await look(broker, Drain())
    said = json.loads(json.dumps(asdict(status)))
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(view(status))
    shown = console.export_text()
    await client.aclose()
    await broker.close()
    server.kill()

    assert {each["kind"] for each in said["redis_weaknesses"]} == {"forgets", "evicts"}
    for each in said["redis_weaknesses"]:
        assert f"Redis breaks a promise: {each['text']}" in shown


async def test_a_gateway_that_says_goodbye_is_gone(herd_up: HerdProcess) -> None:
    """At once; one that dies is shown silent, for a minute."""
    broker = Broker.connect(herd_up.redis_url)
    try:
        await broker.gateway_beat("f" * 32, {"address": "a:1"})
        assert "f" * 32 in [each.gateway_id for each in await broker.gateways()]
        await broker.gateway_gone("f" * 32)
        assert "f" * 32 not in [each.gateway_id for each in await broker.gateways()]
    finally:
        await broker.close()
