#!/bin/bash
# Compiles every CUDA source against CUDA 12.9 without its nvcc: clang, with the headers, libdevice and ptxas of the Python
# package index, makes machine code for each GPU; the host side is compiled too. Needs Debian's clang-22. Nothing is run.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$PWD/build/cuda12
clang=${CLANG:-clang++-22}

rm -rf "$work"
mkdir -p "$work/cuda" "$work/out"
"${PYTHON:-python3}" -m pip --quiet install --no-deps --target "$work/packages" \
  nvidia-cuda-runtime-cu12==12.9.79 nvidia-cuda-nvcc-cu12==12.9.86
cp -r "$work"/packages/nvidia/cuda_runtime/{include,lib} "$work"/packages/nvidia/cuda_nvcc/{bin,nvvm} "$work/cuda"
cp -r "$work"/packages/nvidia/cuda_nvcc/include "$work/cuda"
touch "$work/cuda/include/curand_mtgp32_kernel.h" # clang's wrapper includes it, no kernel here needs it

flags=(-x cuda --cuda-path="$work/cuda" -std=c++20 -O3 -Wall -Wno-unknown-cuda-version -Icpp/include -Icpp/src -Icuda
  -DNSA_KERNEL_VERSION='""' -DNSA_KERNEL_ARCHITECTURES='""')
for source in cuda/*.cu cuda/*/*.cu; do
  name=$(basename "$source" .cu)
  "$clang" "${flags[@]}" --cuda-host-only -c "$source" -o "$work/out/$name.o"
  for architecture in ${ARCHITECTURES:-70 75 80 86 89 90 100 103 120 121}; do
    cubin=$work/out/$name.sm_$architecture.cubin
    "$clang" "${flags[@]}" --cuda-device-only --cuda-gpu-arch="sm_$architecture" -c "$source" -o "$cubin"
    echo "$(basename "$cubin"): $(stat -c %s "$cubin") bytes, $(readelf --syms --wide "$cubin" | grep -c 'FUNC *GLOBAL') kernels"
  done
done
