#!/usr/bin/env bash
# Generates the Go stubs from the protos and builds what stands on them into .tools/go/bin: the client's programs, those in
# the folders given, and the client's tests (llamaherd.test). Fails where gofmt or go vet finds something.
#
# Everything comes from Debian 12 (scripts/apt-packages.txt), so nothing is fetched: its Go libraries live in
# /usr/share/gocode and are found in GOPATH mode. The package path is the protos' own `go_package`.
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly OUT=$PWD/.tools/go
readonly PACKAGE=llamaherd.dev/llamaherd
export CGO_ENABLED=0 GO111MODULE=off GOPATH=$OUT:/usr/share/gocode GOFLAGS=-buildvcs=false

rm -rf "$OUT/src"
mkdir -p "$OUT/src/$PACKAGE" "$OUT/bin"
protoc --proto_path=protos --proto_path=third_party/googleapis \
  --go_out="$OUT/src" --go-grpc_out="$OUT/src" protos/llamaherd/v1/*.proto
cp clients/go/llamaherd/*.go "$OUT/src/$PACKAGE"

programs=(./clients/go/generate ./clients/go/conversation ./clients/go/conformance "${@/#/./}")
unformatted=$(gofmt -l clients/go "${programs[@]}")
if [[ -n $unformatted ]]; then
  printf 'gofmt -w %s\n' $unformatted >&2
  exit 1
fi
go vet "$PACKAGE" "${programs[@]}"
go build -o "$OUT/bin/" "${programs[@]}"
go test -c -o "$OUT/bin/llamaherd.test" "$PACKAGE"
