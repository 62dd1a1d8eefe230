#!/usr/bin/env bash
# Puts grpcurl into target/tools/bin, built by Go from its module.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
bin=${CARGO_TARGET_DIR:-$root/target}/tools/bin

if [ ! -x "$bin/grpcurl" ]; then
  command -v go >/dev/null || {
    echo "grpcurl is missing, and there is no Go toolchain to build it with: install Go, then run 'make grpcurl'." >&2
    exit 1
  }
  mkdir -p "$bin"
  GOBIN=$(cd "$bin" && pwd) go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3
fi
