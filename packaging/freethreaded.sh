#!/bin/bash
# Tests the package without the GIL: the suite and the stress test, then the stress test again with ThreadSanitizer over Python and
# extension. Python is built from Debian's source of 3.13, which needs its build dependencies and some 10 minutes for each of two.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$PWD/build/freethreaded
export PYTHON_GIL=0 NSA_KERNEL_CUDA=OFF

build_python() { # FOLDER OPTIONS...
  local folder=$1
  if [ -x "$folder/installed/bin/python3" ]; then
    return
  fi
  mkdir -p "$folder"
  tar -x --strip-components 1 -C "$folder" -f "$work"/python3.13_*.orig.tar.xz
  (cd "$folder" && ./configure --disable-gil --disable-test-modules --prefix="$folder/installed" "${@:2}" && make -s -j"$(nproc)" install) > "$folder.log" 2>&1
}

mkdir -p "$work"
if ! compgen -G "$work/python3.13_*.orig.tar.xz" > /dev/null; then
  (cd "$work" && ../../packaging/trixie.sh "$work" "$(dpkg --print-architecture)" source --download-only python3.13)
fi

echo "== Python without the GIL"
build_python "$work/python"
python=$work/venv/bin/python
[ -x "$python" ] || "$work/python/installed/bin/python3" -m venv "$work/venv"
"$python" -c 'import sys; print(sys.version); assert not sys._is_gil_enabled()'
# The releases that are pinned have no wheels for every free-threaded Python; the newest that has one will do.
"$python" -m pip --quiet install --only-binary=:all: cmake hypothesis numpy pytest pytest-xdist rich torch
"$python" -m pip --quiet install --no-deps --force-reinstall .
"$python" -m pytest -q --devices cpu --numprocesses=auto --maxprocesses=4 --dist=loadfile "$@"
"$python" tests/stress.py 60

echo "== ThreadSanitizer"
build_python "$work/tsan" --with-thread-sanitizer
rm -rf "$work/site"
"$python" -m pip --quiet install --only-binary=:all: --target "$work/site" numpy
"$python" -m pip --quiet install --no-deps --target "$work/site" . \
  --config-settings cmake.build-type=RelWithDebInfo --config-settings cmake.define.NSA_KERNEL_SANITIZE=thread
TSAN_OPTIONS=halt_on_error=1:suppressions=$work/tsan/Tools/tsan/suppressions_free_threading.txt \
  PYTHONPATH=$work/site "$work/tsan/installed/bin/python3" tests/stress.py 60
