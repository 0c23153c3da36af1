#!/bin/bash
# Builds the package in build/package and installs it for PYTHON: install.sh PYTHON. A second build compiles what changed.
# NSA_KERNEL_CUDA=ON compiles the kernels for every GPU, or for those of CUDAARCHS; OFF builds for the CPU alone.
# Unset, it is ON for the GPUs of this machine, and OFF where there are none.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1

if [ -z "${NSA_KERNEL_CUDA:-}" ]; then
  if nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
    export NSA_KERNEL_CUDA=ON CUDAARCHS=${CUDAARCHS:-native}
    echo "   with CUDA, for the GPUs of this machine; NSA_KERNEL_CUDA=ON compiles the kernels for every GPU"
  else
    export NSA_KERNEL_CUDA=OFF
    echo "   for the CPU alone: no NVIDIA driver was found; NSA_KERNEL_CUDA=ON compiles the kernels, for every GPU"
  fi
fi

export PYTHONDONTWRITEBYTECODE=1 # the sources stay as they are
"$python" packaging/backend.py | xargs --no-run-if-empty "$python" -m pip --quiet install
"$python" -m pip --quiet install --no-build-isolation --no-deps --config-settings build-dir=build/package .
