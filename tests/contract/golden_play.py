"""Plays one small herd by our scripts and records what they leave in Redis: the golden entries.

`python -m tests.contract.golden_play` writes golden/*.json anew. Do that only for a change that old and new processes
can both read, since they run side by side during an update.
"""

import asyncio
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from contract import connection, keys
from contract.broker import MAX_CRASHES, Broker, StepRow, new_lease
from contract.messages import (
    Alternative,
    ChoiceEnd,
    EndReason,
    Job,
    JobSampling,
    JobStopping,
    LoggedToken,
    encode_tokens,
)
from tests.contract.rig import CALLER, GATEWAY, MODEL, QUEUE, WORKER, Rig
from tests.redis_server import start_valkey

GOLDEN = Path(__file__).parent / "golden"
GENERATION = "0.00112233445566778899aabbccddeeff"
FAILED = "0.ffeeddccbbaa99887766554433221100"
LEASE = "0123456789abcdef"
TIME_MS = 1_700_000_000_000  # stands for every time; queue and inbox ids are times too

JOB = Job(
    generation_id=GENERATION,
    model=MODEL,
    job_class="normal",
    prompt_ids=(1, 15043, 29871),
    sampling=JobSampling(temperature=0.7, top_k=40, top_p=0.9, seed=2**63),
    stopping=JobStopping(max_new_tokens=64, max_time_ms=60_000, stop_strings=("\n\n", "ä")),
    strip_leading_space=True,
    logprobs=True,
    trace_context={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
)
FULL_JOB = Job(
    generation_id=GENERATION,
    model=MODEL,
    job_class="low",
    prompt_ids=(1, 15043),
    sampling=JobSampling(
        temperature=0.7,
        top_k=40,
        top_p=0.9,
        seed=2**63,
        min_p=0.125,
        typical_p=0.75,
        repetition_penalty=1.5,
        frequency_penalty=-0.5,
        presence_penalty=0.25,
        logit_bias=((7, -100.0), (15043, 2.5)),
        n=3,
    ),
    stopping=JobStopping(
        max_new_tokens=64,
        max_time_ms=60_000,
        stop_strings=("\n\n",),
        min_new_tokens=4,
        stop_token_ids=(13, 2),
        ignore_eos=True,
    ),
    strip_leading_space=False,
    logprobs=True,
    top_logprobs=2,
    echo=True,
    prompt_logprobs=True,
)
SCORED = LoggedToken(
    0, 0, 0, 15043, "Hello", -0.25, (Alternative(15043, -0.25, "Hello"), Alternative(198, -2.5, "\ufffd"))
)
TOKENS = (
    LoggedToken(choice=0, index=0, position=0, token_id=15043, text="Hello", logprob=-0.25),
    LoggedToken(choice=1, index=0, position=1, token_id=2, text=""),
    LoggedToken(choice=0, index=1, position=2, token_id=30433, text=" ä|"),
)
CHOICE_END = ChoiceEnd(choice=1, reason="EOS", num_tokens=1)
ENDS = (ChoiceEnd(choice=0, reason="STOP_STRING", num_tokens=2, stop_string="ä", text="held | back"), CHOICE_END)
ERROR = "engine error | 3 ü"


# What today's scripts write beside what is recorded; processes of the recorded version pass over it.
_PLACE = {"place": "0"}
ADDED: dict[str, dict[str, str]] = {
    "queue_entry": {"t": "67", "c": "67"},
    **dict.fromkeys(("record_queued", "record_running", "record_finished"), _PLACE),
}


async def play(rig: Rig) -> dict[str, Any]:
    """Every message once; bytes as Latin-1 text, times as TIME_MS."""
    recorded: dict[str, Any] = {}
    recorded["job"] = JOB.to_bytes()
    recorded["job_full"] = FULL_JOB.to_bytes()
    recorded["token_scored"] = encode_tokens([SCORED], 0)[0]
    await rig.broker.submit(
        JOB, caller=CALLER, digest="d1", gateway_id=GATEWAY, max_waiting=9, window_ms=30_000
    )  # fmt: skip
    recorded["record_queued"] = await rig.client.hgetall(keys.record(GENERATION))
    recorded["queue_entry"] = (await rig.client.xrange(QUEUE))[0]
    [entry] = await rig.deliver()
    await rig.broker.take(entry, worker_id=WORKER, lease=LEASE)
    body, chain = encode_tokens(TOKENS, 0)
    await rig.step(StepRow(GENERATION, LEASE, 0, 3, 0, chain, body, (CHOICE_END,)))
    recorded["record_running"] = await rig.client.hgetall(keys.record(GENERATION))
    await rig.step(StepRow(GENERATION, LEASE, 3, 0, chain, chain, b"", end=EndReason.DONE, end_choices=ENDS))
    recorded["record_finished"] = await rig.client.hgetall(keys.record(GENERATION))
    log = await rig.client.xrange(keys.log(GENERATION))
    recorded["attempt_mark"], recorded["token_row"], recorded["ending"] = log
    recorded["choice_ends"] = log[2][1][b"b"]
    await rig.submit(FAILED)
    await fail(rig)
    recorded["ending_failed"] = (await rig.client.xrange(keys.log(FAILED)))[-1]
    inbox = await rig.client.xrange(keys.inbox(GATEWAY))
    recorded["inbox_rows"] = [row for _, fields in inbox for row in fields.items()]
    recorded["record_cancelled"] = await play_cancel(rig)
    await play_poison(rig)
    await play_unreadable(rig)
    recorded["dead"], recorded["dead_unreadable"] = await rig.client.xrange(keys.DEAD)
    await rig.broker.check_server()
    recorded["meta"] = await rig.client.hgetall(keys.META)
    recorded["model"] = await rig.client.hgetall(keys.model(MODEL))
    recorded["models"] = await rig.client.zrange(keys.MODELS, 0, -1)
    return {name: _plain(each) for name, each in recorded.items()}


async def fail(rig: Rig) -> None:
    """An attempt that the engine gives up."""
    [entry] = await rig.deliver()
    await rig.broker.take(entry, worker_id=WORKER, lease=LEASE)
    await rig.step(StepRow(FAILED, LEASE, 0, 0, 0, 0, b"", end=EndReason.FAILED, error=ERROR))


async def play_cancel(rig: Rig) -> dict[bytes, bytes]:
    """A generation whose owner has yet to hear that it was cancelled."""
    generation_id = "0." + "1" * 32
    await rig.submit(generation_id)
    [entry] = await rig.deliver()
    await rig.broker.take(entry, worker_id=WORKER, lease=LEASE)
    await rig.broker.cancel(generation_id, caller=CALLER)
    found: dict[bytes, bytes] = await rig.client.hgetall(keys.record(generation_id))
    return found


async def play_poison(rig: Rig) -> None:
    """A generation that has ended its workers."""
    generation_id = "0." + "0" * 32
    await rig.submit(generation_id)
    [entry] = await rig.deliver()
    await rig.rewrite(generation_id, crashes=MAX_CRASHES, attempt=MAX_CRASHES)
    await rig.broker.take(entry, worker_id=WORKER, lease=new_lease())


async def play_unreadable(rig: Rig) -> None:
    """A generation whose worker cannot read it."""
    generation_id = "0." + "2" * 32
    await rig.submit(generation_id)
    [entry] = await rig.deliver()
    await rig.broker.take(entry, worker_id=WORKER, lease=LEASE)
    await rig.broker.dead.set_aside(generation_id, lease=LEASE, why="not a job")


def load(name: str) -> Any:
    """One golden entry, with bytes as bytes again."""
    return _bytes(json.loads((GOLDEN / f"{name}.json").read_text()))


def plain_golden(name: str) -> Any:
    """One golden entry as it stands in its file."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def _plain(value: Any) -> Any:
    match value:
        case bytes():
            text = value.decode("latin-1")
            return re.sub(r"\b1[6-9]\d{11}(-\d+)?\b", lambda m: f"{TIME_MS}{'-0' if m[1] else ''}", text)
        case dict():
            return {_plain(k): _plain(v) for k, v in value.items()}
        case _:
            return [_plain(each) for each in value]


def _bytes(value: Any) -> Any:
    match value:
        case str():
            return value.encode("latin-1")
        case dict():
            return {_bytes(k): _bytes(v) for k, v in value.items()}
        case _:
            return [_bytes(each) for each in value]


async def _record(folder: Path) -> None:
    server = start_valkey(folder)
    client: Any = connection.connect(server.url)
    broker = Broker.connect(server.url)
    await broker.announce(MODEL, "bundle-digest", b"bundle")
    await broker.gateway_beat(GATEWAY)
    for name, value in (await play(Rig(broker, client))).items():
        (GOLDEN / f"{name}.json").write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    await broker.close()
    await client.aclose()
    server.kill()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="herd-") as temporary:
        asyncio.run(_record(Path(temporary)))
