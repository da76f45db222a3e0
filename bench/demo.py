"""`herd up` with nothing given: how soon the demo model says its first token, and how fast one stream goes on.

    taskset -c 0,1 python -m bench.demo --runs 5

Each run starts the whole service anew (private valkey, gateway, worker) and asks "Count to 150" over gRPC: 641 tokens
and EOS.
Prints one JSON line a run, and the medians.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc

from llamaherd.v1 import common_pb2, generation_pb2, generation_pb2_grpc

QUESTION = "Count to 150"
POLL_S = 0.02


def measure(folder: Path) -> dict[str, float]:
    """One start: seconds to ready and to the first token, then tokens a second to the last one."""
    ready = folder / "ready.json"
    command = [sys.executable, "-m", "herd", "up", "--port", "0", "--device", "cpu", "--ready-file", str(ready)]
    begun_s = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as herd:
        try:
            while not ready.exists():
                assert herd.poll() is None, "herd up ended"
                time.sleep(POLL_S)
            ready_s = time.perf_counter() - begun_s
            stamps_s, num_tokens = _ask(json.loads(ready.read_text())["address"])
        finally:
            herd.send_signal(signal.SIGINT)
            herd.wait(60)
    return {
        "ready_s": ready_s,
        "first_token_s": stamps_s[0] - begun_s,
        "tokens": num_tokens,
        "tokens_per_s": (num_tokens - 1) / (stamps_s[-1] - stamps_s[0]),
    }


def _ask(address: str) -> tuple[list[float], int]:
    """When each message of tokens came, and how many tokens there were."""
    message = common_pb2.ChatMessage(role=common_pb2.ROLE_USER, content=QUESTION)
    spec = common_pb2.GenerationSpec(chat=common_pb2.ChatInput(messages=[message]))
    stamps_s: list[float] = []
    num_tokens = 0
    with grpc.insecure_channel(address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        for response in stub.Generate(generation_pb2.GenerateRequest(spec=spec), timeout=300):
            if response.tokens:
                stamps_s.append(time.perf_counter())
                num_tokens += len(response.tokens)
    return stamps_s, num_tokens


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    rows = []
    for _ in range(arguments.runs):
        with tempfile.TemporaryDirectory(prefix="herd-bench-") as folder:
            rows.append(measure(Path(folder)))
        print(json.dumps(rows[-1]), flush=True)
    medians = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    print(json.dumps({"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0], **medians}))


if __name__ == "__main__":
    main()
