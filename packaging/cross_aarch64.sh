#!/bin/bash
# Compiles and links the library and the extension for aarch64 on another machine, and shows what came out.
# Needs Debian's g++-aarch64-linux-gnu and a Python of at least 3.12; nothing is run.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$PWD/build/aarch64
python=${PYTHON:-python3}

rm -rf "$work"
mkdir -p "$work"
"$python" -m venv "$work/tools"
"$work/tools/bin/pip" --quiet install cmake ninja nanobind
PYTHON=$work/tools/bin/python packaging/toolkit.sh 13 "$work/cuda"

# The compiler is this machine's; headers and the runtime to link are aarch64's.
"$work/tools/bin/pip" --quiet install --no-deps --only-binary=:all: --platform manylinux2014_aarch64 \
  --target "$work/target" 'cuda-toolkit==13.0.*' nvidia-cuda-{cccl,crt,nvcc,runtime}==13.0.*
mkdir "$work/cuda/targets"
ln -s "$work/target/nvidia/cu13" "$work/cuda/targets/sbsa-linux"

PATH=$work/tools/bin:$PATH CUDA_HOME=$work/cuda CXX=aarch64-linux-gnu-g++ CUDAHOSTCXX=aarch64-linux-gnu-g++ cmake \
  -S . -B "$work/build" -G Ninja \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_FIND_ROOT_PATH=/usr/aarch64-linux-gnu \
  -DCMAKE_CUDA_FLAGS="--target-directory sbsa-linux" \
  -DNSA_KERNEL_PYTHON=ON -DSKBUILD_PROJECT_NAME=nsa_kernel_cu13 -DSKBUILD_SOABI=abi3 \
  -DPython_EXECUTABLE="$work/tools/bin/python" \
  -DPython_INCLUDE_DIR="$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')" \
  -DPython_SABI_LIBRARY=/dev/null \
  -Dnanobind_DIR="$("$work/tools/bin/python" -m nanobind --cmake_dir)"
"$work/tools/bin/cmake" --build "$work/build"

cd "$work/build"
for file in _ext*.so; do
  aarch64-linux-gnu-readelf --file-header --dynamic "$file" | grep -E 'Class|Type|Machine|NEEDED'
  aarch64-linux-gnu-objdump --dynamic-syms "$file" | grep -o 'GLIBC[XX]*_[0-9.]*' | sort -uV | tr '\n' ' '
done
aarch64-linux-gnu-objdump --file-headers libnsa_kernel.a | grep 'file format' | sort | uniq -c
