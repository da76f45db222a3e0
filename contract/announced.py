"""What workers announce of their models, read back: names, digests, bundles. What is damaged counts as not there."""

from collections.abc import Collection
from contextlib import suppress
from typing import Any

from contract import keys
from contract.connection import answered, each_answer
from contract.messages import MalformedMessage


async def read_models(client: Any, live: Collection[str]) -> dict[str, str]:
    """Every model with its bundle's digest; `live` are names to look up too. Raises BrokerDown."""
    names = set(live)
    with suppress(MalformedMessage):
        async with answered():
            names |= {name.decode() for name in await client.zrange(keys.MODELS, 0, -1)}
    async with answered(), client.pipeline(transaction=False) as pipe:
        for name in sorted(names):
            pipe.hget(keys.model(name), "digest")
        digests = await each_answer(pipe) if names else []
    return {name: digest.decode() for name, digest in zip(sorted(names), digests, strict=True) if digest}


async def read_bundle(client: Any, digest: str) -> bytes | None:
    """The bytes of a bundle; None if it has expired. Raises BrokerDown."""
    found: bytes | None = None
    with suppress(MalformedMessage):
        async with answered():
            found = await client.get(keys.bundle(digest))
    return found


async def is_announced(client: Any, model: str, digest: str) -> bool:
    """Whether the model is in the index, and it and the bundle are there. Raises BrokerDown."""
    async with answered(), client.pipeline(transaction=False) as pipe:
        pipe.zscore(keys.MODELS, model)
        pipe.hexists(keys.model(model), "digest")
        pipe.strlen(keys.bundle(digest))
        return all(await each_answer(pipe))
