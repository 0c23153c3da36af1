#!/bin/bash
# Runs the aarch64 wheel under emulation: selftest, the C++ consumer and the test suite, of it what is said below.
# Needs Debian and user namespaces; a root file system and qemu from Debian's packages lie in build/aarch64, nothing is installed.
set -euo pipefail
shopt -s extglob
cd "$(dirname "$0")/.."
work=$PWD/build/aarch64
root=$work/root
# What builds, draws or reads the checkout, and what compiles with torch or imports an engine: minutes for each test.
left_out='benchmark|build|docs|emulation|packaging|pictures|readme|sglang|sglang_refresh|tracing|vllm'
# A minute and more for each test: a million rows by the oracle, 100,000 calls, g++ on torch's headers, the selftest above.
# And a limit in milliseconds.
slow='a_million_requests or 128-2-70000 or many_calls_keep_nothing or inductor or selftest or 50_ms'

if [ ! -e "$root/usr/bin/python3" ]; then
  mkdir -p "$work"/{packages,qemu} "$root"/{dev,mnt,proc,sys,tmp}
  packaging/trixie.sh "$work/apt" arm64 install --download-only bash coreutils dash g++ make python3
  for package in "$work"/apt/cache/archives/*.deb; do
    dpkg -x "$package" "$root"
  done
  (cd "$work/packages" && ../../../packaging/trixie.sh "$work/host" "$(dpkg --print-architecture)" download qemu-user)
  dpkg -x "$work"/packages/qemu-user_*.deb "$work/qemu"
fi

# pip takes this machine for the target where it looks what torch depends on.
target=(--quiet install --target "$root/site" --only-binary=:all: --implementation cp --python-version 3.13 --abi={cp313,abi3,none}
  --platform=manylinux{_2_{28,27,26,24,17},2014}_aarch64)
if [ ! -e "$root/site/torch" ]; then
  "$work/tools/bin/pip" "${target[@]}" cmake hypothesis numpy pytest-xdist filelock fsspec jinja2 networkx sympy typing-extensions
  "$work/tools/bin/pip" "${target[@]}" --no-deps torch==2.10.0
  sed -i '1s|^#!.*|#!/usr/bin/python3|' "$root"/site/bin/*
fi
rm -rf "$root"/site/nsa_kernel*
for wheel in "$work"/wheelhouse/*.whl; do
  "$work/tools/bin/python" -m zipfile -e "$wheel" "$root/site"
done

# binfmt_misc in a user namespace of its own: outside of it no aarch64 program runs.
emulated() {
  unshare --map-root-user --mount --pid --fork --kill-child bash -c '
    root=$1 checkout=$2 qemu=$3
    mount --make-rprivate /
    mount --bind "$root" "$root"
    mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
    head="\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    mask="\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
    printf %s ":aarch64:M::$head:$mask:$qemu:OCF" > /proc/sys/fs/binfmt_misc/register
    mount --rbind /dev "$root/dev"
    mount --rbind /sys "$root/sys"
    mount -t proc proc "$root/proc"
    mount --bind "$checkout" "$root/mnt"
    exec chroot "$root" /usr/bin/env --ignore-environment --chdir=/mnt HOME=/tmp USER=root LANG=C.UTF-8 \
      PATH=/site/bin:/usr/bin PYTHONPATH=/site PYTHONPYCACHEPREFIX=/site/pycache "${@:4}"
  ' -- "$root" "$PWD" "$work/qemu/usr/bin/qemu-aarch64" "$@"
}

TIMEFORMAT='   took %0R s'
emulated python3 -m nsa_kernel info
time emulated python3 -m nsa_kernel selftest
echo "left out: test_{${left_out//|/,}}.py; tests named $slow; 20 random cases of each op"
[ $# -gt 0 ] || set -- tests/test_!($left_out).py
time emulated python3 -m pytest -q -p no:cacheprovider --cases=20 --numprocesses="$(nproc)" --dist=loadfile \
  -k "not ($slow)" "$@"
