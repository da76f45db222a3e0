#!/usr/bin/env bash
# Our own wheels, compiled, into an environment that requirements.sh made. Fails if it lacks something they need.
#
# usage: install.sh PREFIX WHEELS
set -euo pipefail
export UV_NO_CACHE=1 # what it keeps would stay in the image
readonly prefix=${1:?prefix} wheels=${2:?wheels}

uv pip install --quiet --python "$prefix/bin/python" --no-index --no-deps "$wheels"/*.whl
uv pip check --quiet --python "$prefix/bin/python"
for package in service worker contract telemetry herd llamaherd; do
  "$prefix/bin/python" -m compileall -q "$prefix"/lib/python3*/site-packages/"$package"
done
