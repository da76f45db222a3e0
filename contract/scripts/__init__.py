"""The Lua scripts of the protocol: each is one atomic change, with its key schema on top."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from redis.exceptions import NoScriptError

from contract.connection import ask

_SHEBANG = "#!"


@dataclass(frozen=True, slots=True)
class Script:
    """A script with the shared prelude before it, and the digest Redis knows it by."""

    body: str
    sha1: str


@cache
def load_script(name: str) -> Script:
    """The script `name`.lua. A shebang line stays first: it carries the flags."""
    folder = resources.files(__package__)
    own, prelude = ((folder / f"{part}.lua").read_text() for part in (name, "lib"))
    first, _, rest = own.partition("\n")
    body = f"{first}\n{prelude}\n{rest}" if first.startswith(_SHEBANG) else f"{prelude}\n{own}"
    return Script(body, hashlib.sha1(body.encode(), usedforsecurity=False).hexdigest())


async def run_script(client: Any, name: str, where: Sequence[str], arguments: Sequence[Any]) -> Any:
    """One call; a server that does not know the script (any more) gets it with the call. Raises BrokerDown.

    Args:
        client: redis.asyncio.Redis or RedisCluster; redis-py's types do not tell replies of one from the other's.
        where: every key, or the first of those that are made from it: all carry the same tag.
    """
    script = load_script(name)
    parts = (len(where), *where, *arguments)
    try:
        return await ask(client, "EVALSHA", script.sha1, *parts)
    except NoScriptError:
        return await ask(client, "EVAL", script.body, *parts)
