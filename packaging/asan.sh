#!/bin/bash
# Builds the CPU library and the extension under the address and undefined-behaviour sanitizers and runs the tests on the CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python
site=$PWD/build/asan

# Python itself is not instrumented, so the sanitizers come first by preload; it also leaves memory behind at its end.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:symbolize=1
export UBSAN_OPTIONS=print_stacktrace=1:abort_on_error=1

rm -rf "$site"
NSA_KERNEL_CUDA=OFF "$python" -m pip --quiet install --no-build-isolation --no-deps --target "$site" . \
  --config-settings build-dir=build/asan-cmake --config-settings cmake.build-type=RelWithDebInfo \
  --config-settings cmake.define.NSA_KERNEL_SANITIZE=address,undefined

export CXXFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all" # for the C++ that the tests build
preload="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)"
LD_PRELOAD=$preload PYTHONPATH=$site PYTHONPYCACHEPREFIX=$PWD/build/pycache "$python" -m pytest -q --devices cpu \
  --ignore tests/test_build.py --ignore tests/test_import.py --ignore tests/test_packaging.py "$@"
