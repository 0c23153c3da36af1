#!/bin/bash
# Builds the pure package and the sdist into FOLDER: pure.sh PYTHON FOLDER.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 folder=$2

export NSA_KERNEL_CUDA=OFF
"$python" -m build --sdist --outdir "$folder" .
NSA_KERNEL_PURE=1 "$python" -m build --wheel --outdir "$folder" .
