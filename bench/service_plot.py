"""CPU time a token over the number of streams, as a picture of bench.service's figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

PARTS = {"gateway": ("gateway",), "worker": ("engine", "supervisor"), "Redis": ("redis",)}


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One bar a row, its parts stacked. The suffix of `path` says the format."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 9})
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    labels = [_label(row, rows) for row in rows]
    below = [0.0] * len(rows)
    for name, processes in PARTS.items():
        costs = [sum(row["cpu_us_per_token"][process] for process in processes) for row in rows]
        bars = axes.bar(labels, costs, bottom=below, width=0.6, label=name)
        axes.bar_label(bars, fmt="%.1f", label_type="center", color="white")
        below = [low + cost for low, cost in zip(below, costs, strict=True)]
    axes.set_xlabel("streams at the same time")
    axes.set_ylabel("CPU, µs a token")
    axes.set_ylim(0, max(below) * 1.15)
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
