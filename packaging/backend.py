"""The build backend: scikit-build-core, with a CUDA compiler from the package index where the machine has none.

Run as a program, it prints what a build without isolation needs beside the group `build` of pyproject.toml.
"""

import os
import subprocess
import sys
from pathlib import Path

import scikit_build_core.build as skbuild
from scikit_build_core.build import *  # noqa: F403
from scikit_build_core.cmake import CMake
from scikit_build_core.errors import CMakeNotFoundError

CUDA_COMPILER = "cuda-toolkit[nvcc,crt,nvvm,cudart,cccl]==13.0.*"
OFF = {"0", "OFF", "NO", "FALSE", "N", "IGNORE", ""}

os.environ["NSA_KERNEL_PYTHON_PATH"] = os.pathsep.join(sys.path)  # where find_nvcc.cmake meets that compiler


def _wants_cuda(config_settings):
    for key in ("cmake.define.NSA_KERNEL_CUDA", "skbuild.cmake.define.NSA_KERNEL_CUDA"):
        if key in (config_settings or {}):
            return config_settings[key].upper() not in OFF
    return os.environ.get("NSA_KERNEL_CUDA", "ON").upper() not in OFF


def _has_nvcc():
    try:
        cmake = CMake.default_search().cmake_path
    except CMakeNotFoundError:
        return False  # nothing to ask yet; the build prefers the machine's nvcc all the same
    search = [cmake, "-P", Path(__file__).with_name("find_nvcc.cmake")]
    return subprocess.run(search, capture_output=True, check=False).returncode == 0


def _compiler(config_settings):
    return [CUDA_COMPILER] if _wants_cuda(config_settings) and not _has_nvcc() else []


def get_requires_for_build_wheel(config_settings=None):
    """What scikit-build-core asks for, and the compiler."""
    return [*skbuild.get_requires_for_build_wheel(config_settings), *_compiler(config_settings)]


def get_requires_for_build_editable(config_settings=None):
    """What scikit-build-core asks for, and the compiler."""
    return [*skbuild.get_requires_for_build_editable(config_settings), *_compiler(config_settings)]


if __name__ == "__main__":
    print(*_compiler(None), sep="\n")
