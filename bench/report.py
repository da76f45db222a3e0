"""Where figures go: a row is printed and on disk as soon as it is there, so that a run cut off leaves what it had."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from contract.lifetime import bound

Row = Mapping[str, object]


class Report:
    """Tables of one run: as JSON in `out`, beside it as Markdown, and printed. A new run begins both files anew.

    A row is an object; its keys are the heads of the columns, and its lists stand in the JSON only.
    """

    def __init__(self, out: Path, **facts: object) -> None:
        """Args: facts: of the whole run: machine, versions, options."""
        self._out = out
        self._markdown = out.with_suffix(".md")
        self._found: dict[str, object] = dict(facts)
        self._tables: dict[str, list[Row]] = {}
        self._heads: tuple[str, list[str]] | None = None
        out.parent.mkdir(parents=True, exist_ok=True)
        self._markdown.write_text("")
        self._tell("; ".join(f"{name} {_cell(name, value)}" for name, value in facts.items()))
        self._write()

    def row(self, table: str, row: Row) -> None:
        """The next row of a table."""
        self._tables.setdefault(table, []).append(row)
        shown = {name: value for name, value in row.items() if not isinstance(value, list | tuple | dict)}
        heads = (table, list(shown))
        if heads != self._heads:
            self._heads = heads
            self._tell(f"\n{table}\n")
            self._tell(_line([name.replace("_", " ") for name in shown]) + "\n|" + "---|" * len(shown))
        self._tell(_line([_cell(name, value) for name, value in shown.items()]))
        self._write()

    def note(self, text: str) -> None:
        """A sentence between the tables."""
        self._heads = None
        self._tell(f"\n{text}")

    def _tell(self, text: str) -> None:
        print(text, flush=True)
        with self._markdown.open("a") as file:
            file.write(text + "\n")

    def _write(self) -> None:
        partial = self._out.with_suffix(".partial")
        partial.write_text(json.dumps(self._found | self._tables, indent=1) + "\n")
        partial.replace(self._out)


def rows_of(command: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The JSON lines that a process prints, as they come; what else it says is passed on. It ends with this one.

    Raises RuntimeError if it fails.
    """
    with subprocess.Popen(bound(command), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
            else:
                print(line, end="", file=sys.stderr)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(name: str, value: object) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    if name.endswith(("share", "spread", "kept")):
        return f"{value:.1%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
