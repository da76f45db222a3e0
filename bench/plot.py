"""Draws what bench/engine.py wrote: decode tokens/s over the batch, beside what the memory allows. No library, one SVG.

    python -m bench.plot bench/engine.json bench/engine.svg

Of a list of runs it draws the first.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 440, 80, 40, 190, 60
BATCHES = (1, 8, 32, 64, 128)
RATES = (300, 1_000, 3_000, 10_000, 30_000)
COLOURS = {"int8": "#1b6ca8", "nf4": "#c2571a"}

Point = tuple[float, float]


def place(batch: float, rate: float) -> Point:
    """Pixels; both axes are logarithmic."""
    x = LEFT + (WIDTH - LEFT - RIGHT) * math.log(batch / BATCHES[0]) / math.log(BATCHES[-1] / BATCHES[0])
    y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * math.log(rate / RATES[0]) / math.log(RATES[-1] * 1.4 / RATES[0])
    return x, y


def text(x: float, y: float, words: str, anchor: str = "middle", colour: str = "#333") -> str:
    """One line of text."""
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{colour}">{words}</text>'


def line(points: Sequence[Point], colour: str, dashed: bool) -> str:
    """A curve, with dots where it was measured."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    dots = "" if dashed else "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>{dots}'


def axes() -> list[str]:
    """Grid and labels."""
    drawn = []
    for batch in BATCHES:
        (x, low), (_, high) = place(batch, RATES[0]), place(batch, RATES[-1] * 1.4)
        drawn.append(f'<line x1="{x:.1f}" y1="{low:.1f}" x2="{x:.1f}" y2="{high:.1f}" stroke="#eee"/>')
        drawn.append(text(x, low + 20, str(batch)))
    for rate in RATES:
        (left, y), (right, _) = place(BATCHES[0], rate), place(BATCHES[-1], rate)
        drawn.append(f'<line x1="{left:.1f}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}" stroke="#eee"/>')
        drawn.append(text(left - 8, y + 4, f"{rate:,}", "end"))
    drawn.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 15, "sequences decoding together"))
    return drawn


def draw(decode: Sequence[dict[str, Any]], title: str) -> str:
    """The whole picture, of the rows of one context."""
    drawn = [*axes(), text(LEFT, 22, title, "start")]
    for name, colour in COLOURS.items():
        rows = [row for row in decode if row["quantization"] == name]
        measured = [place(row["batch"], row["tokens_per_s"]) for row in rows]
        allowed = [place(row["batch"], row["tokens_per_s"] / row["engine_share"]) for row in rows]
        drawn += [line(measured, colour, dashed=False), line(allowed, colour, dashed=True)]
        label = "int8" if name == "int8" else "NF4"
        offset = 14 if name == "int8" else -4
        drawn.append(text(measured[-1][0] + 10, measured[-1][1] + offset, f"{label}, engine", "start", colour))
        drawn.append(text(allowed[-1][0] + 10, allowed[-1][1] + offset, f"{label}, memory's limit", "start", colour))
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>', *drawn, "</svg>\n"])


def main() -> None:
    """Read and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    found = json.loads(arguments.results.read_text())
    run = found[0] if isinstance(found, list) else found
    context = min(row["context"] for row in run["decode"])
    shown = [row for row in run["decode"] if row["shape"] == "7b" and row["context"] == context]
    rows = [row for row in shown if row.get("kv", "float") == "float"]
    title = f"Llama 2 7B's shape on one {run['device']}: decode tokens/s, context {context}"
    arguments.picture.write_text(draw(rows, title))


if __name__ == "__main__":
    main()
