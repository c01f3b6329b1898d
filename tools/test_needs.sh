#!/usr/bin/env bash
# What the tests use beyond .venv: PostgreSQL's server. As root on a Debian-like system it is installed; without it the
# tests that need it are skipped and say so.
set -euo pipefail
command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "== machine: installing postgresql for the tests"
    if apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends postgresql >/dev/null; then
        exit 0
    fi
fi
echo "note: no PostgreSQL server; the tests that need one will be skipped (apt-get install postgresql)" >&2
