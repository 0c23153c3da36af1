"""The build backend: scikit-build-core, with a CUDA compiler from the package index where the machine has none."""

import os
import shutil
import sys
from pathlib import Path

import scikit_build_core.build as skbuild
from scikit_build_core.build import *  # noqa: F403

CUDA_COMPILER = "cuda-toolkit[nvcc,crt,nvvm,cudart,cccl]==13.0.*"
INSTALLED_COMPILER = "nvidia/cu13"
OFF = {"0", "OFF", "NO", "FALSE", "N", "IGNORE", ""}


def _wants_cuda(config_settings):
    for key in ("cmake.define.NSA_KERNEL_CUDA", "skbuild.cmake.define.NSA_KERNEL_CUDA"):
        if key in (config_settings or {}):
            return config_settings[key].upper() not in OFF
    return os.environ.get("NSA_KERNEL_CUDA", "ON").upper() not in OFF


def _has_nvcc():
    if os.environ.get("CUDACXX") or shutil.which("nvcc"):
        return True
    roots = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    return any(Path(root, "bin", "nvcc").is_file() for root in roots if root)


def _compiler(config_settings):
    return [CUDA_COMPILER] if _wants_cuda(config_settings) and not _has_nvcc() else []


def _use_installed_compiler():
    if _has_nvcc():
        return
    for entry in sys.path:
        root = Path(entry, INSTALLED_COMPILER)
        if (root / "bin" / "nvcc").is_file():
            os.environ["CUDA_HOME"] = str(root)
            return


def get_requires_for_build_wheel(config_settings=None):
    """What scikit-build-core asks for, and the compiler."""
    return [*skbuild.get_requires_for_build_wheel(config_settings), *_compiler(config_settings)]


def get_requires_for_build_editable(config_settings=None):
    """What scikit-build-core asks for, and the compiler."""
    return [*skbuild.get_requires_for_build_editable(config_settings), *_compiler(config_settings)]


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """scikit-build-core's, with the compiler in sight."""
    _use_installed_compiler()
    return skbuild.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """scikit-build-core's, with the compiler in sight."""
    _use_installed_compiler()
    return skbuild.build_editable(wheel_directory, config_settings, metadata_directory)
