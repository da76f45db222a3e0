"""How a command tells an error of its own."""

import sys


def complain(command: str, what: object) -> None:
    """One line on standard error."""
    print(f"herd {command}: {what}", file=sys.stderr)
