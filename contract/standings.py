"""Where many generations stand, in one round trip: a record that is damaged harms none of the others."""

from collections.abc import Sequence
from typing import Any

from contract import keys, parsing
from contract.connection import answered, each_answer
from contract.outcomes import Standing

_STANDING = ("state", "T", "chain", "attempt", "deadline", "cancel", "readers")  # as parse_standing takes them
_LEASE = ("lease", "cancel")


async def read_standings(client: Any, generation_ids: Sequence[str]) -> list[Standing | None]:
    """None for a record that is gone, or cannot be read. Raises BrokerDown."""
    return [parsing.parse_standing_or_none(answer) for answer in await _read(client, generation_ids, _STANDING)]


async def read_leases(client: Any, generation_ids: Sequence[str]) -> list[tuple[str, bool]]:
    """(lease, whether a cancel is wanted); ('', False) for a record that is gone, or none. Raises BrokerDown."""
    answers = await _read(client, generation_ids, _LEASE)
    return [((lease or b"").decode(errors="replace"), bool(cancel)) for lease, cancel in answers]


async def _read(client: Any, generation_ids: Sequence[str], names: Sequence[str]) -> list[Sequence[bytes | None]]:
    if not generation_ids:
        return []
    async with answered(), client.pipeline(transaction=False) as pipe:
        for generation_id in generation_ids:
            pipe.hmget(keys.record(generation_id), *names)
        return [answer or [None] * len(names) for answer in await each_answer(pipe)]
