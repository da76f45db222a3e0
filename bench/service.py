"""What the service costs: real gateways, real Redis with its log, real worker, only the model replaced by a pace.

    python -m bench.service --streams 1,64,256,1000 --rate 20000

Readers in processes of their own check every token and measure what they see; CPU time comes from /proc. Prints one
table; a row is one number of streams.
"""

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.histogram import Histogram
from bench.procfs import parse_cores
from bench.reader_processes import all_ready, answers_of, sampled, start_reader, total
from bench.whole_herd import Herd, Shape, whole_herd

HEAD = (
    "gateways | AOF fsync | streams | tokens/s | tokens a message | first token p50 / p99, ms | gap p50 / p99, ms "
    "| CPU µs a token: gateway | worker | Redis | readers | wrong"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement."""

    shape: Shape
    streams: int
    seconds: float
    seen: list[dict[str, Any]]
    cpu_s: dict[str, float]
    rss_mib: dict[str, list[float]]

    @property
    def tokens(self) -> int:
        """That came while it was measured."""
        return sum(each["tokens"] for each in self.seen)

    def histogram(self, name: str) -> Histogram:
        """`first` or `gaps`, of all readers."""
        return total(self.seen, name)

    def cpu_us(self, *names: str) -> float:
        """CPU microseconds a token of these processes."""
        return 1e6 * sum(self.cpu_s[name] for name in names) / max(1, self.tokens)

    def to_json(self) -> dict[str, object]:
        """All figures."""
        first, gaps = self.histogram("first"), self.histogram("gaps")
        wrong = [what for each in self.seen for what in each["wrong"]]
        return {
            "gateways": self.shape.gateways,
            "appendfsync": self.shape.appendfsync,
            "offered_tokens_per_s": self.shape.rate,
            "streams": self.streams,
            "seconds": round(self.seconds, 2),
            "tokens": self.tokens,
            "tokens_per_s": round(self.tokens / self.seconds, 1),
            "tokens_per_message": round(self.tokens / max(1, sum(each["messages"] for each in self.seen)), 2),
            "generations": sum(each["ended"] for each in self.seen),
            "first_token_ms": {f"p{p}": first.percentile_ms(p) for p in (50, 90, 99)},
            "gap_ms": {f"p{p}": gaps.percentile_ms(p) for p in (50, 90, 99, 99.9)},
            "cpu_us_per_token": {name: round(self.cpu_us(name), 2) for name in self.cpu_s},
            "rss_mib": self.rss_mib,
            "num_wrong": len(wrong),
            "wrong": wrong[:5],
        }

    def line(self) -> str:
        """As a row of the table."""
        figures = self.to_json()
        rate = self.tokens / self.seconds

        def pair(name: str) -> str:
            histogram = self.histogram(name)
            return " / ".join(f"{histogram.percentile_ms(percent) or 0:.1f}" for percent in (50, 99))

        return (
            f"| {self.shape.gateways} | {self.shape.appendfsync} | {self.streams:,} | {rate:,.0f} "
            f"| {figures['tokens_per_message']} | {pair('first')} | {pair('gaps')} | {self.cpu_us('gateway'):.1f} "
            f"| {self.cpu_us('engine', 'supervisor'):.1f} | {self.cpu_us('redis'):.1f} | {self.cpu_us('readers'):.1f} "
            f"| {figures['num_wrong']} |"
        )


async def measure(herd: Herd, shape: Shape, streams: int, options: argparse.Namespace) -> Row:
    """One row: readers begin, after the warm-up everything is counted, after the duration they end."""
    num_readers = min(options.readers, streams)
    readers = []
    for number in range(num_readers):
        mine = streams // num_readers + (number < streams % num_readers)
        arguments = {
            "address": herd.address,
            "streams": mine,
            "channels": min(options.channels, mine),
            "prompt": options.prompt,
            "new": options.new,
            "seed": number,
        }
        readers.append(await start_reader("bench.readers", options.reader_cores or options.cores, arguments))
    await all_ready(readers)
    begin_s = time.monotonic() + options.warm_up
    end_s = begin_s + options.duration
    pids = herd.pids | {"readers": [reader.pid for reader in readers]}
    seen, samples = await asyncio.gather(answers_of(readers, begin_s, end_s), sampled(pids, begin_s, end_s))
    return Row(shape, streams, options.duration, seen, samples.cpu_s, samples.rss_mib)


async def run(options: argparse.Namespace) -> list[Row]:
    """Every row, printed as it comes. A new herd for every number of gateways and kind of AOF."""
    rows = []
    print(f"| {HEAD} |\n|{'---|' * (HEAD.count('|') + 1)}", flush=True)
    for gateways in options.gateways:
        for appendfsync in options.appendfsync:
            shape = Shape(
                gateways=gateways,
                appendfsync=appendfsync,
                rate=options.rate,
                step_s=options.step_ms / 1000,
                max_streams=max(options.streams),
                cores=frozenset(parse_cores(options.cores)),
            )
            async with whole_herd(shape) as herd:
                for streams in options.streams:
                    rows.append(await measure(herd, shape, streams, options))
                    print(rows[-1].line(), flush=True)
    return rows


def parse_options() -> argparse.Namespace:
    """The command line."""

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--streams", type=numbers, default=[1, 64, 256, 1000], help="rows: streams at the same time")
    add("--gateways", type=numbers, default=[1], help="gateway processes on one port")
    add("--appendfsync", type=lambda text: text.split(","), default=["everysec"], help="no, everysec, always")
    add("--rate", type=float, default=20_000, help="tokens/s that the model makes for all streams; 0: no bound")
    add("--step-ms", type=float, default=2.0, help="the model's shortest step")
    add("--prompt", type=int, default=64, help="tokens of a prompt")
    add("--new", type=int, default=256, help="tokens of an answer")
    add("--duration", type=float, default=10.0, help="seconds that count")
    add("--warm-up", type=float, default=4.0, help="seconds before them")
    add("--readers", type=int, default=2, help="processes of readers")
    add("--channels", type=int, default=4, help="connections of one of them")
    add("--cores", default="", help="cores of all processes, as 0,1 or 2-5; empty: any")
    add("--reader-cores", default="", help="cores of the readers; empty: those of all")
    add("--json", type=Path, help="write all figures here")
    add("--plot", type=Path, help="draw cost a token over streams here (.svg or .png; needs matplotlib)")
    return parser.parse_args()


def main() -> None:
    """Parse the arguments, measure, write."""
    options = parse_options()
    rows = asyncio.run(run(options))
    figures = [row.to_json() for row in rows]
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if options.plot:
        from bench.service_plot import draw  # matplotlib is no part of what a server needs

        draw(figures, options.plot)
    sys.exit(any(row["num_wrong"] for row in figures))


if __name__ == "__main__":
    main()
