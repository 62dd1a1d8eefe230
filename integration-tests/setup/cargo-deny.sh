#!/usr/bin/env bash
# Puts cargo-deny into target/tools/bin. Building it takes some minutes, once.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
tools=${CARGO_TARGET_DIR:-$root/target}/tools

if [ ! -x "$tools/bin/cargo-deny" ]; then
  echo "building cargo-deny (some minutes, once)"
  mkdir -p "$tools"
  env -u CARGO_TARGET_DIR cargo install cargo-deny --version 0.20.2 --locked --quiet --root "$tools" || {
    echo "cargo-deny cannot be built from crates.io; licences, bans and sources of dependencies stay unchecked." >&2
    exit 1
  }
fi
