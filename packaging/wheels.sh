#!/bin/bash
# Builds the release of this machine natively and tests it: the wheels of CUDA 12 and 13, the pure package and the sdist.
# They land in wheelhouse/. Python 3.11 makes its own wheel, 3.12 the stable-ABI one, which newer ones test once more.
# What is 12 here is 12.4 on Debian, without the newest GPUs; a release has 12.9.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$PWD/build/wheels
toolkits=$PWD/build/toolkits # kept: one of them is a GB to fetch
out=$PWD/wheelhouse
platform=manylinux_2_28_$(uname -m)

rm -rf "$work" "$out"
mkdir -p "$work" "$toolkits" "$out"
python3 -m venv "$work/tools"
tools=$work/tools/bin
"$tools/pip" --quiet install 'pip>=25.1'
"$tools/pip" --quiet install --group packaging

for major in 12 13; do
  echo "== toolkit of CUDA $major"
  PYTHON=$tools/python packaging/toolkit.sh "$major" "$toolkits/$major"
done

link_rule="$PWD/packaging/link.sh $tools/python g++ <LANGUAGE_COMPILE_FLAGS> <LINK_FLAGS> -shared -o <TARGET> <OBJECTS> <LINK_LIBRARIES>"

for version in 3.11 3.12; do
  python=$(packaging/find_python.sh "$version") || { echo "== no Python $version here: no wheel for it"; continue; }
  "$python" -m venv "$work/build-$version"
  for major in 12 13; do
    echo "== wheel of CUDA $major with Python $version"
    CUDA_HOME=$toolkits/$major "$work/build-$version/bin/python" -m pip --quiet wheel --no-deps --wheel-dir "$work/raw" \
      "packaging/cu$major" --config-settings "cmake.define.CMAKE_CXX_CREATE_SHARED_MODULE=$link_rule"
  done
done
PATH=$tools:$PATH auditwheel repair --zip-compression-level 9 --plat "$platform" --only-plat --wheel-dir "$out" "$work"/raw/*.whl

echo "== pure package and sdist"
packaging/pure.sh "$tools/python" "$out"

echo "== checks"
packaging/check_wheels.sh "$tools" "$out"

export NSA_KERNEL_TOOLKITS="$toolkits/12 $toolkits/13"
for version in 3.11 3.12 3.13 3.14; do
  python=$(packaging/find_python.sh "$version") || { echo "== no Python $version here: not tested with it"; continue; }
  "$python" -m venv "$work/test-$version"
  majors=(12 13)
  [[ $version < 3.13 ]] || majors=(13) # what is new is Python
  for major in "${majors[@]}"; do
    echo "== test of CUDA $major with Python $version"
    packaging/without_toolkit.sh packaging/test_wheels.sh "$work/test-$version/bin/python" "$major" "$out"
  done
done
