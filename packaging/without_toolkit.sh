#!/bin/bash
# Runs a command that sees no CUDA toolkit: without_toolkit.sh COMMAND...
set -euo pipefail
unset CUDA_HOME CUDA_PATH CUDACXX
export PATH=/usr/bin:/bin
if [ ! -e /usr/local/cuda ]; then
  exec "$@"
fi
exec unshare --map-root-user --mount bash -c 'mount -t tmpfs none "$(readlink -f /usr/local/cuda)" && exec "$@"' -- "$@"
