"""How the command line tells what the service answered: on standard error, with what can be done about it."""

import sys

from llamaherd.client import ConnectionBroken, HerdError

NOBODY_THERE = """\
  `herd up` starts a herd on this machine; --address or HERD_ADDRESS names a gateway elsewhere; --tls if it has a
  certificate"""


def show_error(error: HerdError, *, begins_line: bool = False) -> None:
    """The status, its message and what else it says.

    Args:
        begins_line: nothing stands on the terminal's line yet; else the error begins one.
    """
    print(f"{'' if begins_line else chr(10)}{error}", file=sys.stderr)
    for violation in error.violations:
        print(f"  {violation.field}: {violation.description}", file=sys.stderr)
    if error.retry_after_s is not None:
        print(f"  retry after {error.retry_after_s:g} s", file=sys.stderr)
    if error.reason:
        facts = "".join(f", {key} {value}" for key, value in sorted(error.metadata.items()))
        print(f"  reason {error.reason}{facts}", file=sys.stderr)
    if isinstance(error, ConnectionBroken):
        print(NOBODY_THERE, file=sys.stderr)
