"""How the command line tells an error of the service."""

import sys

from llamaherd.client import HerdError


def show_error(error: HerdError) -> None:
    """The status, its message and what else it says."""
    print(f"\n{error}", file=sys.stderr)
    for violation in error.violations:
        print(f"  {violation.field}: {violation.description}", file=sys.stderr)
    if error.retry_after_s is not None:
        print(f"  retry after {error.retry_after_s:g} s", file=sys.stderr)
    if error.reason:
        facts = "".join(f", {key} {value}" for key, value in sorted(error.metadata.items()))
        print(f"  reason {error.reason}{facts}", file=sys.stderr)
