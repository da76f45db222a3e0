#!/usr/bin/env bash
# A virtual environment with what others wrote for one extra of pyproject.toml, and not with our own packages: so the
# large layer of an image changes only when pyproject.toml does. What was chosen is in PREFIX/requirements.txt.
#
# usage: requirements.sh service|worker PREFIX
# Python is $PYTHON, else python3. Where uv looks and what bounds it are its own variables (UV_CONSTRAINT, UV_FIND_LINKS).
set -euo pipefail
cd "$(dirname "$0")/.."
readonly extra=${1:?extra} prefix=${2:?prefix}
export UV_PYTHON_DOWNLOADS=never

uv venv --quiet --python "${PYTHON:-python3}" "$prefix"
uv pip compile --quiet --python "$prefix/bin/python" --extra "$extra" --no-emit-package llamaherd-client \
  --no-header --output-file "$prefix/requirements.txt" pyproject.toml
uv pip sync --quiet --python "$prefix/bin/python" "$prefix/requirements.txt"
