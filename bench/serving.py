"""The whole service over a model folder, `herd up`, gRPC, Redis Streams, against its own engine alone, in one run.

    python -m bench.make_model 7b /tmp/llama-7b-int8 --quantization int8
    python -m bench.serving --folders /tmp/llama-7b-int8 --streams 1 8 64 128 --out serving.json

* start: from nothing to the first token over gRPC, twice. Only the first one here may have kernels to compile.
* service: a closed loop of N streams a worker (bench/load.py). `kept` is its share of the tokens/s that the engine
  makes of the same requests without the service (bench/alone.py); `added ms` is what it adds to the first token.
  `cores` are CPU seconds a second, of the gateways, of Redis, and of the first worker's two processes.
* with --workers 1 2, on a machine of two GPUs, once for each: `times` is tokens/s over those of the first.

A worker has as many slots as the most streams asked for, so that full workers share the load evenly.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from bench.load import measure, random_prompt, rounds_of
from bench.procfs import children, usage
from bench.report import Report, Row, rows_of
from contract.lifetime import bound
from llamaherd.v1 import common_pb2, generation_pb2, generation_pb2_grpc

POLL_S = 0.02
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Herd:
    """A running one; `begun_s` is when its command was started, by time.monotonic(). `pids`: its children by name."""

    address: str
    begun_s: float
    ready_s: float
    pids: Mapping[str, int]

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far: gateways, Redis, and of the first worker what serves and its engine."""
        engine, serving = children(self.pids["worker-0"])
        gateways = [pid for name, pid in self.pids.items() if name.startswith("gateway")]
        processes = {"gateway": gateways, "redis": [self.pids["valkey"]], "serving": [serving], "engine": [engine]}
        return {name: usage(pids).cpu_s for name, pids in processes.items()}


@contextmanager
def herd_up(folder: Path, workers: int, options: argparse.Namespace) -> Iterator[Herd]:
    """`herd up`, ready; stopped in order at the end. Raises RuntimeError, with its last words, if it does not start."""
    settings = {"HERD_WORKER_MAX_SEQUENCES": str(max(options.streams))}
    settings |= {"HERD_WORKER_KV_CACHE_BYTES": str(options.kv_cache_bytes)} if options.kv_cache_bytes else {}
    with tempfile.TemporaryDirectory(prefix="herd-bench-") as work:
        ready, words = Path(work) / "ready.json", Path(work) / "words.log"
        flags = {
            "model": folder,
            "workers": workers,
            "gateways": options.gateways,
            "port": 0,
            "device": options.device,
            "ready-file": ready,
        }
        command = [sys.executable, "-m", "herd", "up", "--verbose"]
        command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        begun_s = time.monotonic()
        with (
            words.open("w") as log,
            subprocess.Popen(bound(command), env={**os.environ, **settings}, stderr=log) as process,
        ):
            try:
                while not ready.exists():
                    if process.poll() is not None or time.monotonic() > begun_s + START_TIMEOUT_S:
                        raise RuntimeError(f"herd up did not start:\n{words.read_text()[-4000:]}")
                    time.sleep(POLL_S)
                told = json.loads(ready.read_text())
                yield Herd(told["address"], begun_s, time.monotonic() - begun_s, told["pids"])
            finally:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
        for line in words.read_text().splitlines():
            if '"level": "warning"' in line or '"level": "error"' in line or "model on device" in line:
                print(line, file=sys.stderr)


def first_token_s(herd: Herd, options: argparse.Namespace) -> float:
    """Seconds from the command to the first token."""
    ids = random_prompt(random.Random(0), options.prompt, options.vocabulary)
    spec = common_pb2.GenerationSpec(
        token_ids=common_pb2.TokenIds(ids=ids), stopping=common_pb2.Stopping(max_new_tokens=1)
    )
    with grpc.insecure_channel(herd.address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        for response in stub.Generate(generation_pb2.GenerateRequest(spec=spec), timeout=START_TIMEOUT_S):
            if response.tokens:
                return time.monotonic() - herd.begun_s
    raise RuntimeError("an answer without a token")


def engine_alone(folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """What bench/alone.py prints, a row for each number of streams."""
    command = [sys.executable, "-m", "bench.alone", "--folder", str(folder), "--device", options.device, "--streams"]
    command += map(str, options.streams)
    for name in ("rounds", "prompt", "new", "vocabulary", "kv_cache_bytes"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    return rows_of(command)


def serve(folder: Path, options: argparse.Namespace, report: Report) -> None:
    """All rows of one folder."""
    alone: dict[int, Row] = {}
    for found in engine_alone(folder, options):
        report.row("engine alone", {"folder": folder.name, **found})
        alone[int(str(found["streams"]))] = found
    first_rates: dict[int, float] = {}
    for workers in options.workers:
        for start in range(1, options.starts + 1):
            with herd_up(folder, workers, options) as herd:
                row: Row = {"folder": folder.name, "workers": workers, "start": start, "ready_s": herd.ready_s}
                report.row("start", {**row, "first_token_s": first_token_s(herd, options)})
                if start == options.starts:
                    rows = [through(herd, workers, streams, alone[streams], options) for streams in options.streams]
                    for each in rows:
                        rate = float(str(each["tokens_per_s"]))
                        base = first_rates.setdefault(int(str(each["streams"])) // workers, rate)
                        report.row("service", {"folder": folder.name, **each, "times": rate / base})
                    report.note(gpu_memory())


def through(herd: Herd, workers: int, streams: int, alone: Row, options: argparse.Namespace) -> Row:
    """So many streams a worker through the service, against the engine alone."""
    rounds, before = options.rounds or rounds_of(streams), herd.cpu_s()
    found = measure(
        herd.address, streams * workers, rounds, options.prompt, options.new, options.vocabulary, options.readers
    )
    seconds = float(str(found["seconds"]))
    cores = {f"{name}_cores": (after - before[name]) / seconds for name, after in herd.cpu_s().items()}
    rates = [float(str(each["tokens_per_s"])) for each in (found, alone)]
    firsts = [float(str(each["first_p50_ms"])) for each in (found, alone)]
    return {
        "workers": workers,
        **found,
        "kept": rates[0] / (rates[1] * workers),
        "added_ms": firsts[0] - firsts[1],
        **cores,
    }


def gpu_memory() -> str:
    """What nvidia-smi says is in use."""
    command = ["nvidia-smi", "--query-gpu=name,memory.used", "--format=csv,noheader"]
    try:
        return "; ".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())
    except (OSError, subprocess.CalledProcessError):
        return "no nvidia-smi"


def facts() -> Mapping[str, object]:
    """Of the machine; asked for in a process that ends, since it takes GPU memory."""
    script = "from bench.device import *; print(device_name(choose_device('auto')))"
    told = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True).stdout
    return {"device": told.strip(), "cores": len(os.sched_getaffinity(0))}


def main() -> None:
    """Folder by folder, rows as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--folders", nargs="+", type=Path, required=True, help="model folders, one after the other")
    add("--streams", nargs="+", type=int, default=[1, 8, 64, 128], help="of each worker")
    add("--workers", nargs="+", type=int, default=[1])
    add("--gateways", type=int, default=1)
    add("--rounds", type=int, default=0, help="generations a stream; by default the fewer, the more streams there are")
    add("--prompt", type=int, default=128, help="tokens")
    add("--new", type=int, default=128, help="tokens of an answer")
    add("--vocabulary", type=int, default=32_000)
    add("--starts", type=int, default=2, help="of the service; only the last one is loaded")
    add("--readers", type=int, default=4, help="processes")
    add("--device", default="auto")
    add("--kv-cache-bytes", type=int, default=0, help="of each worker; 0 takes what is free")
    add("--out", type=Path, required=True, help="JSON; the tables go beside it, as Markdown")
    options = parser.parse_args()
    report = Report(options.out, **facts())
    failed = False
    for folder in options.folders:
        try:
            serve(folder, options, report)
        except RuntimeError as error:  # the next folder may do better
            report.note(f"{folder}: {error}")
            failed = True
    sys.exit(failed)


if __name__ == "__main__":
    main()
