#!/bin/bash
# Puts a CUDA compiler into FOLDER: toolkit.sh 12|13 FOLDER. Builds then find it through CUDA_HOME=FOLDER.
# CUDA 13 comes from the Python package index; CUDA 12 from NVIDIA's repository for the distribution of manylinux_2_28.
set -euo pipefail
major=$1 folder=$2

case $major in
  12)
    arch=$(uname -m)
    dnf -y -q install 'dnf-command(config-manager)' gcc-toolset-14-gcc-c++
    dnf -y -q config-manager --add-repo \
      "https://developer.download.nvidia.com/compute/cuda/repos/rhel8/${arch/aarch64/sbsa}/cuda-rhel8.repo"
    dnf -y -q install cuda-nvcc-12-9 cuda-cudart-devel-12-9 cuda-cccl-12-9
    ln -sfn /usr/local/cuda-12.9 "$folder"
    ;;
  13)
    packages=$folder.packages
    "${PYTHON:-python3}" -m pip install --quiet --upgrade --target "$packages" \
      'cuda-toolkit[nvcc,crt,nvvm,cudart,cccl]==13.0.*'
    ln -sfn "$packages/nvidia/cu13" "$folder"
    ;;
  *)
    echo "toolkit.sh: the CUDA major version is '$major', must be 12 or 13" >&2
    exit 1
    ;;
esac
"$folder/bin/nvcc" --version
