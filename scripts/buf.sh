#!/usr/bin/env bash
# Runs buf, pinned; installs it from npm into .tools/ at the first call.
set -euo pipefail

readonly BUF=1.75.0
root=$(cd "$(dirname "$0")/.." && pwd)
readonly PREFIX=$root/.tools/buf-$BUF

if [[ ! -e $PREFIX/ready ]]; then
  rm -rf "$PREFIX"
  mkdir -p "$PREFIX"
  npm install --silent --no-save --ignore-scripts --no-audit --no-fund --prefix "$PREFIX" "@bufbuild/buf@$BUF" >&2
  touch "$PREFIX/ready"
fi
# There is nothing to fetch at run time, every import is in the tree; buf still wants a cache, and here it gets one.
export BUF_CACHE_DIR=$root/.tools/buf-cache
exec "$PREFIX/node_modules/.bin/buf" "$@"
