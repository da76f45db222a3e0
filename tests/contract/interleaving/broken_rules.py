"""Rules of the protocol, taken away one at a time: what the checks must notice."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

from contract import scripts
from contract.scripts import Script, load_script


@dataclass(frozen=True, slots=True)
class BrokenRule:
    """Replacements in scripts (name, old text, new text), or a duty that processes neglect."""

    replacements: Sequence[tuple[str, str, str]] = ()
    without_reconcile: bool = False
    without_sweep: bool = False

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While inside, the broker runs the broken scripts."""
        with mock.patch.object(scripts, "load_script", self._load):
            yield

    def _load(self, name: str) -> Script:
        body = load_script(name).body
        for script, old, new in self.replacements:
            if script == name:
                assert old in body, f"{name}.lua no longer has {old!r}"
                body = body.replace(old, new)
        return Script(body, hashlib.sha1(body.encode(), usedforsecurity=False).hexdigest())


_FENCE = "if lease_now ~= lease then"
_GOES_BACK = "if t0 > T or (t0 < T and T < t0 + n) then"
_ACK = "if m[2] and m[3] and redis.pcall('XACK', m[2], GROUP, m[3]) == 1 then redis.call('XDEL', m[2], m[3]) end"
_CLOSERS = ("step", "take", "cancel", "expire", "leave", "set_aside")

RULES = {
    "unfenced step": BrokenRule([("step", _FENCE, "if false then")]),
    "unfenced inbox": BrokenRule(
        [
            (
                "step",
                _FENCE,
                _FENCE + " put(box, readers or '', 'T', id, t0 .. ' ' .. t0 + n .. ' ' .. chain0 .. '|' .. body)",
            )
        ]
    ),
    "no t0 check": BrokenRule(
        [
            ("step", _GOES_BACK, "if false then"),
            ("step", "if n > 0 and t0 + n == T and chain1 ~= chain then", "if false then"),
            ("step", "if t0 == T and n > 0 then", "if n > 0 then"),
            ("step", "append(gen, log, id, t0 + n,", "append(gen, log, id, T + n,"),
            ("step", "T = t0 + n\n", "T = T + n\n"),
        ]
    ),
    "ack apart from close": BrokenRule([(name, _ACK, "") for name in _CLOSERS]),
    "state apart from close": BrokenRule([(name, "'state', 'finished', ", "") for name in _CLOSERS]),
    "reap keeps the lease": BrokenRule(
        [
            ("reap", "'owner', '', 'lease', '', 'state', 'free'", "'owner', '', 'state', 'free'"),
            ("take", "if m[3] ~= '' then return {'LOST'} end", ""),
        ]
    ),
    "reap leaves the entry": BrokenRule([("reap", "redis.call('XCLAIM', q, GROUP, FREE, 0, p[1], 'JUSTID')", "")]),
    "take of another's entry": BrokenRule(
        [("take", "if #own == 0 or own[1][2] ~= worker then return {'LOST'} end", "")]
    ),
    "no reconciliation": BrokenRule(without_reconcile=True),
    "no look at silent streams": BrokenRule(without_sweep=True),
}
