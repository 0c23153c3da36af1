#!/bin/bash
# Checks finished distributions without installing them: check_wheels.sh TOOLS FOLDER. TOOLS is the bin folder of the tools.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$1 folder=$2

"$tools/twine" check --strict "$folder"/*
"$tools/check-wheel-contents" "$folder"
for wheel in "$folder"/*linux*.whl; do
  "$tools/auditwheel" show "$wheel"
  case $wheel in *abi3*) "$tools/abi3audit" --strict "$wheel" ;; esac
done
