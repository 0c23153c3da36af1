#!/bin/bash
# Links a shared library for manylinux_2_28 on a newer machine: link.sh PYTHON COMPILER ARGUMENTS... COMPILER made the objects;
# PYTHON has ziglang. The link alone decides which glibc a library needs: zig's linker has the symbols of an older one.
# The C++ library goes in whole, since this machine's shared one is newer than manylinux_2_28 allows. What unwinds stacks
# must be the process's own, or the end of a thread could not go through the extension.
set -euo pipefail
python=$1 compiler=$2 machine=$("$2" -dumpmachine)
exec "$python" -m ziglang cc -target "${machine%%-*}-linux-gnu.2.28" "${@:3}" \
  "$("$compiler" -print-file-name=libstdc++.a)" "$("$compiler" -print-file-name=libgcc_s.so.1)"
