#!/bin/bash
# Puts a CUDA compiler into FOLDER, unless there is one: toolkit.sh 12|13 FOLDER. Builds then find it through CUDA_HOME=FOLDER.
# CUDA 13 comes from the Python package index; CUDA 12.9 from NVIDIA's repository for the distribution of manylinux_2_28,
# or, where there is no dnf, 12.4 from Debian's packages: a GB is fetched, 160 MB are kept, nothing is installed.
set -euo pipefail
major=$1 folder=$2

from_debian() {
  local work=$folder.debian trixie usr lib
  trixie=$(realpath "$(dirname "$0")/trixie.sh")
  rm -rf "$folder" "$work"
  mkdir -p "$work/packages" "$folder"/{bin,lib64,nvvm/bin}
  (cd "$work/packages" && "$trixie" "$work" "$(dpkg --print-architecture)" download \
    nvidia-cuda-toolkit nvidia-cuda-dev libcudart12 libcu++-dev libcub-dev libthrust-dev)
  dpkg-deb --fsys-tarfile "$work"/packages/nvidia-cuda-dev_* |
    tar -x -C "$work" --wildcards ./usr/include './usr/lib/*/libcudart*' './usr/lib/*/libcudadevrt*'
  rm "$work"/packages/nvidia-cuda-dev_*
  for package in "$work"/packages/*; do
    dpkg -x "$package" "$work"
  done

  usr=$work/usr lib=$work/usr/lib/nvidia-cuda-toolkit
  cp -r "$usr"/bin/{bin2c,cudafe++,fatbinary,nvlink,ptxas} "$lib"/bin/{nvcc,crt} "$folder/bin"
  cp "$lib/bin/cicc" "$folder/nvvm/bin"
  cp -r "$lib/libdevice" "$folder/nvvm"
  cp -r "$usr/include" "$folder"
  cp -P "$usr"/lib/*/libcuda{rt,devrt}* "$folder/lib64"
  cat > "$folder/bin/nvcc.profile" <<'PROFILE'
TOP = $(_HERE_)/..
NVVMIR_LIBRARY_DIR = $(TOP)/nvvm/libdevice
PATH += $(TOP)/nvvm/bin:$(_HERE_):
INCLUDES += "-I$(TOP)/include" $(_SPACE_)
LIBRARIES =+ $(_SPACE_) "-L$(TOP)/lib64"
PROFILE
  rm -rf "$work"
}

from_nvidia() {
  local arch
  arch=$(uname -m)
  dnf -y -q install 'dnf-command(config-manager)' gcc-toolset-14-gcc-c++
  dnf -y -q config-manager --add-repo \
    "https://developer.download.nvidia.com/compute/cuda/repos/rhel8/${arch/aarch64/sbsa}/cuda-rhel8.repo"
  dnf -y -q install cuda-nvcc-12-9 cuda-cudart-devel-12-9 cuda-cccl-12-9
  ln -sfn /usr/local/cuda-12.9 "$folder"
}

from_python_index() {
  local packages=$folder.packages
  "${PYTHON:-python3}" -m pip install --quiet --upgrade --target "$packages" \
    'cuda-toolkit[nvcc,crt,nvvm,cudart,cccl]==13.0.*'
  ln -sfn "$packages/nvidia/cu13" "$folder"
}

case $major in
  12 | 13) [ ! -x "$folder/bin/nvcc" ] || exit 0 ;;&
  12) if command -v dnf >/dev/null; then from_nvidia; else from_debian; fi ;;
  13) from_python_index ;;
  *)
    echo "toolkit.sh: the CUDA major version is '$major', must be 12 or 13" >&2
    exit 1
    ;;
esac
"$folder/bin/nvcc" --version
