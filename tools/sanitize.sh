#!/usr/bin/env bash
# The kernels built with address and undefined-behaviour checks, and the tests that call them in process.
# The build and its copy of the package lie under build/sanitize; .venv's own kernels stay as they are.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/.venv/bin
site=$PWD/build/sanitize/site
compiler=${CXX:-g++}
export PATH="$bin:$PATH"

mkdir -p build
echo "== sanitize: compiling the kernels with checks"
cmake -S . -B build/sanitize -G Ninja -DCMAKE_BUILD_TYPE=Release -DFREEHOLD_SANITIZE=address,undefined \
    -DCMAKE_CXX_COMPILER="$compiler" -DPython_EXECUTABLE="$bin/python" >build/sanitize.log 2>&1 ||
    { cat build/sanitize.log >&2; exit 1; }
cmake --build build/sanitize >build/sanitize.log 2>&1 || { cat build/sanitize.log >&2; exit 1; }
rm -rf "$site" && mkdir -p "$site"
cp -r src/freehold "$site/freehold"
find "$site" -name '_native*.so' -delete
cmake --install build/sanitize --prefix "$site" >/dev/null

# Python itself is not instrumented: the runtimes come first, and its own leaks at exit are not ours.
preload="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libstdc++.so)"
tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(tests/kernels)
echo "== sanitize: ${tests[*]}"
LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 FREEHOLD_SANITIZED=$site \
    "$bin/python" - "${tests[@]}" <<'PYTHON'
import os
import sys

# An editable install puts its own finder first; the checked build must win over it.
sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
sys.path.insert(0, os.environ["FREEHOLD_SANITIZED"])
import freehold.kernels._native as native

if not native.__file__.startswith(os.environ["FREEHOLD_SANITIZED"]):
    sys.exit(f"error: {native.__file__} is not the checked build")
import pytest

sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
PYTHON
