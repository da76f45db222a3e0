"""CPU time a token over the number of streams, as a picture of bench.service's figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator

PARTS = {"gateway": ("gateway",), "worker": ("engine", "supervisor"), "Redis": ("redis",)}


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A group of bars for each row. The suffix of `path` says the format."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 9})
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    width = 0.8 / len(PARTS)
    for number, (name, processes) in enumerate(PARTS.items()):
        costs = [sum(row["cpu_us_per_token"][process] for process in processes) for row in rows]
        places = [group + (number - (len(PARTS) - 1) / 2) * width for group in range(len(rows))]
        axes.bar_label(axes.bar(places, costs, width=width, label=name), fmt="%.0f")
    axes.set_xticks(range(len(rows)), [_label(row, rows) for row in rows])
    axes.set_xlabel("streams at the same time")
    axes.set_ylabel("CPU, µs a token")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.minorticks_off()
    axes.margins(y=0.15)
    axes.legend(ncols=len(PARTS), loc="upper right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _label(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The number of streams, and what else differs between the rows."""
    parts = [f"{row['streams']:,}", f"{row['tokens_per_s']:,.0f} tokens/s"]
    if len({each["gateways"] for each in rows}) > 1:
        parts.append(f"{row['gateways']} gateways")
    if len({each["appendfsync"] for each in rows}) > 1:
        parts.append(f"fsync {row['appendfsync']}")
    return "\n".join(parts)
