#!/bin/bash
# Everything that needs a GPU: gpu_check.sh PYTHON. PYTHON has torch, pytest and the build requirements; no network is used.
set -euo pipefail
python=$1

"$python" -m pip install --no-build-isolation --no-deps --force-reinstall .
"$python" -m nsa_kernel info
"$python" -m pytest

for tool in memcheck racecheck initcheck synccheck; do
  echo "== compute-sanitizer $tool"
  compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" -m nsa_kernel selftest
  compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" -m pytest --devices=cuda -k "long_requests or replay_of_a_million" tests/test_sizes.py
done

"$python" benchmarks/bench.py
