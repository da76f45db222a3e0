"""Files stay readable: over 400 lines a reason is owed, 500 is too many. Exceptions are frozen numbers."""

import subprocess
import sys
from pathlib import Path

ASK, FAIL = 400, 500
GENERATED = ("clients/python/llamaherd/v1/", "clients/typescript/gen/")
ALLOWED: dict[str, int] = {}  # path -> lines it may have, never more


def main() -> int:
    """Print what is too long; 1 if anything is."""
    listed = subprocess.run(
        ["git", "ls-files", "*.py", "*.lua", "*.go", "clients/typescript/*.ts"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    failed = False
    for name in listed.split():
        if name.startswith(GENERATED):
            continue
        lines = len(Path(name).read_text().splitlines())
        if lines > ALLOWED.get(name, FAIL):
            print(f"{name}: {lines} lines, {ALLOWED.get(name, FAIL)} are the most")
            failed = True
        elif lines > ASK and name not in ALLOWED:
            print(f"{name}: {lines} lines; think of a split")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
