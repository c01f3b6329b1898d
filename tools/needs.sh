#!/usr/bin/env bash
# What .venv and the kernels need from the machine: Python >= 3.11 with venv, and a C++ compiler.
# As root on a Debian-like system missing packages are installed; otherwise they are named.
set -euo pipefail
python=${1:-python3}

missing=()
if ! command -v "$python" >/dev/null; then
    missing+=(python3 python3-venv python3-dev)
else
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "error: Python >= 3.11 is needed, $python is $("$python" -V 2>&1)" >&2
        echo "hint: name another one with make PYTHON=python3.12 ..." >&2
        exit 2
    }
    "$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        missing+=(python3-dev)
fi
command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || missing+=(g++)
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "== machine: installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
else
    echo "error: this machine lacks ${missing[*]}" >&2
    echo "hint: on Debian and Ubuntu: sudo apt-get install ${missing[*]}" >&2
    exit 3
fi
