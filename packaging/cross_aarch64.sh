#!/bin/bash
# Builds the CUDA 13 wheel for aarch64 on another machine, into build/aarch64/wheelhouse, with the pure package beside it.
# Needs Debian's g++-aarch64-linux-gnu and Python 3.12; nothing of it is run.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$PWD/build/aarch64
python=$(packaging/find_python.sh 3.12)
tools=$work/tools/bin
compiler=aarch64-linux-gnu-g++

rm -rf "$work"/{tools,cuda,cuda.packages,target,build,raw,wheelhouse}
mkdir -p "$work"
"$python" -m venv "$work/tools"
"$tools/pip" --quiet install 'pip>=25.1'
"$tools/pip" --quiet install --group packaging cmake ninja nanobind scikit-build-core wheel
PYTHON=$tools/python packaging/toolkit.sh 13 "$work/cuda"

# The compiler is this machine's; headers and the runtime to link are aarch64's.
"$tools/pip" --quiet install --no-deps --only-binary=:all: --platform manylinux2014_aarch64 \
  --target "$work/target" 'cuda-toolkit==13.0.*' nvidia-cuda-{cccl,crt,nvcc,runtime}==13.0.*
mkdir "$work/cuda/targets"
ln -s "$work/target/nvidia/cu13" "$work/cuda/targets/sbsa-linux"

defines=(
  CMAKE_SYSTEM_NAME=Linux CMAKE_SYSTEM_PROCESSOR=aarch64 CMAKE_FIND_ROOT_PATH=/usr/aarch64-linux-gnu
  CMAKE_CUDA_FLAGS="--target-directory sbsa-linux"
  SKBUILD_SOABI=abi3 Python_SABI_LIBRARY=/dev/null
  CMAKE_CXX_CREATE_SHARED_MODULE="$PWD/packaging/link.sh $tools/python $compiler <LANGUAGE_COMPILE_FLAGS> <LINK_FLAGS> -shared -o <TARGET> <OBJECTS> <LINK_LIBRARIES>"
)
PATH=$tools:$PATH CUDA_HOME=$work/cuda CXX=$compiler CUDAHOSTCXX=$compiler _PYTHON_HOST_PLATFORM=linux-aarch64 \
  "$tools/pip" --quiet wheel --no-deps --no-build-isolation --wheel-dir "$work/raw" packaging/cu13 \
  --config-settings build-dir="$work/build" "${defines[@]/#/--config-settings=cmake.define.}"

# auditwheel knows the platforms of its own machine only: what it would ask is asked here.
glibc=$(aarch64-linux-gnu-objdump --dynamic-syms "$work/build/_ext.abi3.so" | grep -o 'GLIBC_[0-9.]*' | sort -V | tail -1)
if [ "$(printf '%s\n' "$glibc" GLIBC_2.28 | sort -V | tail -1)" != GLIBC_2.28 ]; then
  echo "cross_aarch64.sh: the extension needs $glibc, must need GLIBC_2.28 or older" >&2
  exit 1
fi
"$tools/python" -m wheel tags --platform-tag manylinux_2_28_aarch64 --remove "$work"/raw/*.whl
mv "$work/raw" "$work/wheelhouse"
packaging/pure.sh "$tools/python" "$work/wheelhouse"
