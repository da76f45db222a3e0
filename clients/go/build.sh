#!/usr/bin/env bash
# Generates the Go stubs from the protos and builds the Go programs in the folders given (default: generate) into .tools/go/bin.
#
# Everything comes from Debian 12 (scripts/apt-packages.txt), so nothing is fetched: its Go libraries live in
# /usr/share/gocode and are found in GOPATH mode. The package path is the protos' own `go_package`.
set -euo pipefail

invoked_from=$PWD
cd "$(dirname "$0")/../.."
readonly OUT=$PWD/.tools/go
export CGO_ENABLED=0 GO111MODULE=off GOPATH=$OUT:/usr/share/gocode GOFLAGS=-buildvcs=false

rm -rf "$OUT/src"
mkdir -p "$OUT/src" "$OUT/bin"
protoc --proto_path=protos --proto_path=third_party/googleapis \
  --go_out="$OUT/src" --go-grpc_out="$OUT/src" protos/llamaherd/v1/*.proto

if [[ $# -eq 0 ]]; then set -- "$PWD/clients/go/generate"; fi
for program in "$@"; do
  (cd "$invoked_from" && cd "$program" && go vet . && go build -o "$OUT/bin/$(basename "$PWD")" .)
done
