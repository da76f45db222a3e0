"""The Lua scripts of the protocol: each is one atomic change, with its key schema on top."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources

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
