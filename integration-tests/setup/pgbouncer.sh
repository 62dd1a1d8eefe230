#!/usr/bin/env bash
# Puts PgBouncer into target/tools, from Debian's package, without installing it: no service, no user, no root needed.
# Where it cannot be had, it says so, and so does the test that needs it.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
tools=${CARGO_TARGET_DIR:-$root/target}/tools

command -v pgbouncer >/dev/null && exit 0
[ -x "$tools/bin/pgbouncer" ] && exit 0

without() {
  echo "no PgBouncer ($1): the test of capturing through a pooler will be skipped"
  exit 0
}

command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || without "this is no Debian; install it to have the test"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# With the libraries that it needs and that are seldom there already.
download() {
  apt-get download -qq pgbouncer 2>/dev/null || return 1
  local libraries
  libraries=$(dpkg-deb -f ./pgbouncer_*.deb Depends | tr ',|' '\n\n' | awk '{print $1}' | grep -E '^lib(c-ares|event)' || true)
  # shellcheck disable=SC2086
  [ -z "$libraries" ] || apt-get download -qq $libraries 2>/dev/null
}
if ! download; then
  # The lists may be missing, as in a fresh container.
  if [ "$(id -u)" = 0 ]; then apt-get update -qq || true; else sudo -n apt-get update -qq 2>/dev/null || true; fi
  download || without "the package cannot be downloaded"
fi

echo "unpacking PgBouncer from Debian's package"
mkdir -p "$tools/bin" && rm -rf "$tools/pgbouncer"
for package in ./*.deb; do dpkg-deb -x "$package" "$tools/pgbouncer"; done
cat >"$tools/bin/pgbouncer" <<'SCRIPT'
#!/bin/sh
here=$(cd "$(dirname "$0")/../pgbouncer" && pwd)
libraries=$(echo "$here"/usr/lib/*/ | tr ' ' ':')
LD_LIBRARY_PATH="$libraries" exec "$here/usr/sbin/pgbouncer" "$@"
SCRIPT
chmod +x "$tools/bin/pgbouncer"
