#!/bin/bash
# Checks the workflows, and that they build the wheels that we promise: check_workflows.sh TOOLS.
# TOOLS is the bin folder of the tools.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$1

"$tools/actionlint" -shellcheck= -pyflakes= .github/workflows/*.yml
"$tools/check-jsonschema" --builtin-schema vendor.github-workflows .github/workflows/*.yml
"$tools/zizmor" --offline --quiet --no-progress .github/workflows

for major in 12 13; do
  for arch in x86_64 aarch64; do
    got=$(CUDA_MAJOR=$major "$tools/cibuildwheel" --print-build-identifiers --platform linux --archs "$arch" \
      --config-file packaging/cibuildwheel.toml "packaging/cu$major")
    expected=$(printf "%s-manylinux_$arch\n" cp311 cp312 cp313 cp314 cp314t)
    diff <(sort <<<"$expected") <(sort <<<"$got")
  done
done
