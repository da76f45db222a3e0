#!/usr/bin/env bash
# A random 7B-shape folder, quantized by `herd quantize`, served by `herd up`, loaded through gRPC and Redis.
#   bench/serving.sh WORK_DIR [STREAMS...]      (33 GB of disk, an NVIDIA GPU)
# Prints one JSON line a run, and the memory that nvidia-smi shows.
set -euo pipefail
work=$1; shift
streams=("${@:-8}")
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
say() { printf '%s %s\n' "$(date +%T)" "$*" >&2; }

for to in int8 nf4; do
  [ -e "$work/llama-7b-$to/config.json" ] && continue
  [ -e "$work/llama-7b" ] || { say "writing the fp16 folder"; "$python" -m bench.make_model 7b "$work/llama-7b"; }
  say "quantizing to $to"
  "$python" -m herd quantize "$work/llama-7b" --to "$to" --out "$work/llama-7b-$to" 2>"$work/quantize-$to.log"
done
for to in int8 nf4; do
  say "serving $to"
  begun=$(date +%s.%N)
  rm -f "$work/ready.json"
  "$python" -m herd up --model "$work/llama-7b-$to" --port 0 --ready-file "$work/ready.json" --verbose 2>"$work/up-$to.log" &
  herd=$!
  until [ -e "$work/ready.json" ]; do
    kill -0 "$herd" 2>/dev/null || { tail -40 "$work/up-$to.log" >&2; exit 1; }
    sleep 0.1
  done
  say "ready after $(echo "$(date +%s.%N) - $begun" | bc 2>/dev/null || echo '?') s"
  address=$("$python" -c "import json,sys; print(json.load(open(sys.argv[1]))['address'])" "$work/ready.json")
  for n in "${streams[@]}"; do
    printf '%s ' "$to"
    "$python" -m bench.load --address "$address" --streams "$n" --rounds 2 --prompt 128 --new 128
  done
  nvidia-smi --query-gpu=name,memory.used --format=csv,noheader
  kill -TERM "$herd"
  wait "$herd"
done
