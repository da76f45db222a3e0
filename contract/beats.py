"""What processes say of themselves with every heartbeat, read back."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from contract.connection import answered, each_answer
from contract.messages import MalformedMessage


async def read_beats(client: Any, index: str, key_of: Callable[[str], str]) -> list[tuple[str, dict[str, str], int]]:
    """(id, hash, time of the last beat) of every process in an index whose hash is there. Raises BrokerDown.

    What something else has overwritten is not there: the next beat makes it anew.
    """
    scored: list[tuple[bytes, float]] = []
    with suppress(MalformedMessage):
        async with answered():
            scored = await client.zrange(index, 0, -1, withscores=True)
    async with answered(), client.pipeline(transaction=False) as pipe:
        for name, _ in scored:
            pipe.hgetall(key_of(_text(name)))
        hashes = await each_answer(pipe) if scored else []
    decoded = [{_text(k): _text(v) for k, v in (raw or {}).items()} for raw in hashes]
    rows = zip(scored, decoded, strict=True)
    return [(_text(name), fields, int(at_ms)) for (name, at_ms), fields in rows if "beat" in fields]


def _text(said: bytes) -> str:
    """One process' nonsense is nobody else's trouble."""
    return said.decode(errors="replace")
