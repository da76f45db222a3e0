"""The invariants of the protocol, checked on a real server between any two commands."""

from typing import Any

from contract import keys
from contract.log_entries import parse_log_entry
from contract.messages import CHAIN_START, AttemptMark, Ending, LogEntry, TokenRow, decode_tokens, extend_chain
from tests.contract.interleaving.gateway import Stream
from tests.contract.interleaving.wire import Violation
from tests.contract.rig import CALLER, MODEL

QUEUES = [keys.queue(MODEL, job_class) for job_class in keys.CLASSES]
LASTING = (keys.META, keys.DEAD, f"{keys.TAG}:q:")


async def check(client: Any, streams: list[Stream]) -> None:
    """Raises Violation. Numbers are those of the protocol's list."""
    owners: dict[str, str] = {}  # entry -> consumer, over all classes
    queued: set[str] = set()
    for queue in QUEUES:
        for row in await client.xpending_range(queue, keys.GROUP, "-", "+", 10_000):
            owners[f"{queue} {row['message_id'].decode()}"] = row["consumer"].decode()
        [group] = await client.xinfo_groups(queue)
        delivered = await client.xrange(queue, max=group["last-delivered-id"])
        queued |= {f"{queue} {entry.decode()}" for entry, _ in delivered}
    async with client.pipeline(transaction=False) as pipe:
        for stream in streams:
            pipe.hgetall(keys.record(stream.generation_id))
            pipe.xrange(keys.log(stream.generation_id))
            pipe.pttl(keys.record(stream.generation_id))
            pipe.pttl(keys.log(stream.generation_id))
        answers = await pipe.execute()
    held = {member.decode() for member in await client.zrange(keys.caller(CALLER), 0, -1)}
    for number, stream in enumerate(streams):
        raw, entries, record_ms, log_ms = answers[4 * number : 4 * number + 4]
        record = {k.decode(): v.decode() for k, v in raw.items()}
        if record:  # a submit whose call was lost has made none yet
            logged = _check_log(stream.generation_id, record, entries)
            _check_owner(record, owners, queued)
            is_held = stream.generation_id in held
            _expect(is_held == (record["state"] != "finished"), 2, f"counted for its caller: {is_held}, {record}")
            _expect(record_ms > 0 and (log_ms > 0 or not entries), 7, f"lives for ever: {record}")
            if not stream.may_be_behind:
                is_prefix = logged[: len(stream.tokens)] == stream.tokens
                _expect(is_prefix, 4, f"given {stream.tokens}, logged {logged}")
            if stream.end is not None and not stream.was_over:
                _expect(stream.tokens == logged, 5, f"ended with {stream.tokens}, logged {logged}")


async def check_lifetimes(client: Any) -> None:
    """Of every key. Raises Violation."""
    async for key in client.scan_iter():
        if not key.decode().startswith(LASTING):
            _expect(await client.pttl(key) > 0, 7, f"{key!r} lives for ever")


def _check_log(generation_id: str, record: dict[str, str], entries: list[Any]) -> list[int]:
    """1, 2, 8. Returns the tokens."""
    tokens: list[int] = []
    chain = CHAIN_START
    attempts = 0
    log: list[LogEntry] = [parse_log_entry(entry_id, fields) for entry_id, fields in entries]
    for (entry_id, _), entry in zip(entries, log, strict=True):
        match entry:
            case TokenRow():
                _expect(entry.t0 == len(tokens), 1, f"{generation_id}: {entry.t0} after {len(tokens)} tokens")
                _expect(entry.chain0 == chain, 1, f"{generation_id}: two texts in one log at {entry.t0}")
                row = decode_tokens(entry.body)
                tokens += [token.id for token in row]
                for token in row:
                    chain = extend_chain(chain, token.choice, token.id)
                _expect(entry_id == b"%d-0" % len(tokens), 1, f"{generation_id}: {entry_id!r}, {len(tokens)} tokens")
            case AttemptMark():
                attempts += 1
                _expect(entry == AttemptMark(len(tokens), attempts), 8, f"{generation_id}: {entry}")
            case Ending():
                _expect(entry is log[-1], 1, f"{generation_id}: something after the end")
                _expect(entry.num_tokens == len(tokens), 1, f"{generation_id}: {entry} after {len(tokens)}")
    has_ended = bool(log) and isinstance(log[-1], Ending)
    _expect(int(record["T"]) == len(tokens), 2, f"{len(tokens)} tokens, {record}")
    _expect(int(record["chain"]) == chain, 2, f"chain {chain}, {record}")
    _expect(has_ended == (record["state"] == "finished"), 2, f"ended {has_ended}, {record}")
    _expect(int(record["attempt"]) == attempts >= int(record["crashes"]), 8, f"{attempts} attempts, {record}")
    return tokens


def _check_owner(record: dict[str, str], owners: dict[str, str], queued: set[str]) -> None:
    """3, and that nobody else owns anything."""
    where = f"{record['q']} {record['entry']}"
    match record["state"]:
        case "running":
            _expect(owners.get(where) == record["owner"] != "", 3, f"pending to {owners.get(where)}, {record}")
        case "finished" if record["taken_ms"] != "0":  # one that ended in the queue is dropped by who reads it later
            _expect(where not in owners and where not in queued, 3, f"not acked: {record}")
        case "free":
            _expect(where in owners, 3, f"free, but pending to nobody: {record}")
    if record["state"] != "running":
        _expect(record["owner"] == record["lease"] == "", 3, f"owned: {record}")


def _expect(holds: bool, number: int, otherwise: str) -> None:
    if not holds:
        raise Violation(f"invariant {number}: {otherwise}")
