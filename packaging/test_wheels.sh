#!/bin/bash
# Installs the wheels of FOLDER and runs the test suite, C++ consumer included, against them: test_wheels.sh PYTHON MAJOR FOLDER.
# Left out is what builds the checkout and so says nothing of a wheel.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 major=$2 folder=$3

# Triton asks for the GIL where there need be none, and from then on the tests would run with it.
if "$python" -c 'import sysconfig, sys; sys.exit(not sysconfig.get_config_var("Py_GIL_DISABLED"))'; then
  export PYTHON_GIL=0
fi

"$python" -m pip --quiet install 'pip>=25.1' # the first that knows --group
"$python" -m pip --quiet uninstall --yes nsa-kernel nsa-kernel-cu12 nsa-kernel-cu13
"$python" -m pip --quiet install --no-index --find-links "$folder" "nsa-kernel[cu$major]"
"$python" -m pip --quiet install --group test
"$python" -m nsa_kernel info
NSA_KERNEL_WHEELS=$folder "$python" -m pytest -q --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder \
  --cases=200 --ignore tests/test_build.py --ignore tests/test_emulation.py
