#!/usr/bin/env bash
# The wheels of our two distributions, llamaherd-client and llamaherd-server, in the folder OUT.
#
# usage: wheels.sh OUT
set -euo pipefail
cd "$(dirname "$0")/.."
readonly out=${1:?out}
export UV_PYTHON_DOWNLOADS=never

for source in clients/python .; do
  uv build --quiet --python "${PYTHON:-python3}" --wheel --out-dir "$out" "$source"
done
