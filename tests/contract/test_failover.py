"""A replica becomes master: what holds is what it had; the rest is a lost tail, which is never silent."""

import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError

from contract import connection
from contract.broker import Broker, NotTaken, RowOutcome
from contract.lifetime import spawn
from herd.valkey import server_command
from tests.contract.rig import CALLER, GATEWAY, MODEL, OTHER_WORKER, WORKER, Rig
from tests.ports import free_ports
from tests.until import until


@dataclass(slots=True)
class Pair:
    """A master and its replica, and a rig at each."""

    master: Rig
    replica: Rig

    async def synced(self) -> None:
        """Return when the replica has all that the master has."""
        assert await self.master.client.wait(1, 10_000) == 1

    async def cut(self) -> None:
        """The link breaks: what the master takes from now on is lost with it."""
        await self.replica.client.execute_command("REPLICAOF", "127.0.0.1", "1")
        await until(self.is_cut, what="the replica has left its master")

    async def is_cut(self) -> bool:
        """Whether the master knows of no replica."""
        return bool((await self.master.client.info("replication"))["connected_slaves"] == 0)

    async def promote(self) -> None:
        """The replica is the master now."""
        await self.replica.client.execute_command("REPLICAOF", "NO", "ONE")


@pytest.fixture
def servers() -> "Iterator[tuple[str, str]]":
    """URLs of two valkeys, the second a replica of the first."""
    folder = Path(tempfile.mkdtemp(prefix="herd-"))
    children: list[subprocess.Popen[bytes]] = []
    with free_ports(2) as ports:
        for port in ports:
            own = folder / str(port)
            own.mkdir()
            command = server_command(own / "v.sock", own)
            command[command.index("--port") + 1] = str(port)
            command += ["--bind", "127.0.0.1", "--repl-diskless-sync-delay", "0"]
            children.append(spawn(command, stdout=subprocess.DEVNULL))
        first, second = (f"redis://127.0.0.1:{port}/0" for port in ports)
        yield first, second
        for child in children:
            child.kill()
            child.wait()
    shutil.rmtree(folder)


@pytest.fixture
async def pair(servers: tuple[str, str]) -> AsyncIterator[Pair]:
    """Master and replica, in step."""
    rigs = [Rig(Broker.connect(url), connection.connect(url)) for url in servers]
    for rig in rigs:
        await until(lambda rig=rig: _answers(rig.client), what="the server answers")
    port = servers[0].rpartition(":")[2].removesuffix("/0")
    await rigs[1].client.execute_command("REPLICAOF", "127.0.0.1", port)
    found = Pair(*rigs)
    await until(lambda: _is_linked(rigs[1].client), what="the replica follows")
    await rigs[0].broker.announce(MODEL, "bundle-digest", b"bundle")
    await rigs[0].broker.gateway_beat(GATEWAY)
    yield found
    for rig in rigs:
        await rig.broker.close()
        await rig.client.aclose()


async def test_what_the_replica_had_goes_on_there(pair: Pair) -> None:
    """Lease, position and chain are there: the owner's next row is taken as if nothing had been."""
    taken, text = await pair.master.start()
    await pair.master.step(text.row(taken.lease, 0, 3))
    await pair.synced()
    await pair.promote()
    reply = await pair.replica.step(text.last_row(taken.lease, 3, 5))
    assert reply.outcome is RowOutcome.DONE
    assert len(await pair.replica.token_ids(text.generation_id)) == 5
    assert await pair.replica.pending() == {}


async def test_tokens_that_the_replica_lacked_are_appended_again(pair: Pair) -> None:
    """The owner, whose lease the replica knows, is told to go back, and sends the same tokens: no fork."""
    taken, text = await pair.master.start()
    await pair.master.step(text.row(taken.lease, 0, 2))
    await pair.synced()
    await pair.cut()
    await pair.master.step(text.row(taken.lease, 2, 6))
    await pair.promote()
    reply = await pair.replica.step(text.row(taken.lease, 6, 7))
    assert (reply.outcome, reply.num_tokens) == (RowOutcome.BACK, 2)
    assert (await pair.replica.step(text.row(taken.lease, 2, 7))).outcome is RowOutcome.OK
    assert await pair.replica.token_ids(text.generation_id) == await pair.master.token_ids(text.generation_id) + [
        text.tokens[6].token_id
    ]


async def test_a_take_that_the_replica_lacked_gives_no_lease_there(pair: Pair) -> None:
    """Its owner is fenced, and the job, which is in the queue again, is another's: one text, by one owner."""
    await pair.master.submit()
    await pair.synced()
    await pair.cut()
    [entry] = await pair.master.deliver()
    taken = await pair.master.take(entry)
    await pair.promote()
    assert await pair.replica.broker.take(entry, worker_id=WORKER, lease=taken.lease) is NotTaken.LOST
    [again] = await pair.replica.deliver(OTHER_WORKER)
    assert again == entry
    assert (await pair.replica.take(again, OTHER_WORKER)).attempt == 1


async def test_an_end_that_the_replica_lacked_shows_at_the_reader(pair: Pair) -> None:
    """Not promised: the generation may go on, with other tokens. The chain tells every reader that was ahead."""
    taken, text = await pair.master.start()
    await pair.master.step(text.row(taken.lease, 0, 2))
    await pair.synced()
    await pair.cut()
    await pair.master.step(text.last_row(taken.lease, 2, 4))
    chain_given = text.chains[4]
    await pair.promote()
    assert await pair.replica.kill() == 1
    [entry] = await pair.replica.adopt()
    again = await pair.replica.take(entry, OTHER_WORKER)
    other = type(text)(text.generation_id, salt=100)
    other.tokens, other.chains = text.tokens[:2], text.chains[:3]
    other.grow(4)
    assert (await pair.replica.step(other.row(again.lease, 2, 4))).outcome is RowOutcome.OK
    record = await pair.replica.broker.record(text.generation_id, caller=CALLER)
    assert record.num_tokens == 4
    assert record.chain != chain_given


async def _answers(client: Any) -> bool:
    try:
        return bool(await client.ping())
    except (ConnectionError, OSError):
        return False


async def _is_linked(client: Any) -> bool:
    return bool((await client.info("replication"))["master_link_status"] == "up")
