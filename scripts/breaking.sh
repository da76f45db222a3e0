#!/usr/bin/env bash
# Tells whether protos/ would break a client of the last release, whose API is kept in protos/baseline.binpb.
# With --renew, the API as it stands becomes the baseline: part of a release, after the check has passed.
set -euo pipefail

cd "$(dirname "$0")/.."
readonly BASELINE=protos/baseline.binpb

case "${1:-}" in
  "") exec scripts/buf.sh breaking protos --against "$BASELINE" ;;
  --renew) exec scripts/buf.sh build protos --exclude-source-info --output "$BASELINE" ;;
  *) echo "usage: $0 [--renew]" >&2; exit 2 ;;
esac
