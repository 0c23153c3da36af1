"""Stands in for the extension where Python finds none in this folder, and picks one of the installed nsa-kernel-cuXX.

A build from source puts the compiled `_ext` beside this file, and a Python that it fits never reads this one.
"""

import importlib
import os
import sys
from importlib.util import find_spec
from types import ModuleType

from ._misfit import build_command, fits, misfit

CUDA_MAJORS = (12, 13)


def driver_major() -> int | None:
    """The newest CUDA major version that the driver supports; None without a driver."""
    import ctypes  # noqa: PLC0415 (only this needs it, and not every import of the package does)

    version = ctypes.c_int()
    try:
        status = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return None
    return version.value // 1000 if status == 0 else None


def version() -> str:
    """The version of a package released without an extension. One that was built has no version but the extension's."""
    try:
        return str(importlib.import_module("._version", __package__).__version__)
    except ModuleNotFoundError:
        raise ImportError(f"nsa_kernel: {misfit(__package__)}; run: {build_command()}") from None


def package_of(major: int) -> str:
    """The package that nsa-kernel-cuXX installs."""
    return f"nsa_kernel_cu{major}"


def pip_command(major: int) -> str:
    """How to install the extension for this CUDA."""
    return f'pip install "nsa-kernel[cu{major}]=={version()}"'


def choose(installed: list[int], forced: str | None) -> int:
    """The CUDA major version to use, of those installed."""
    if forced:
        if forced not in map(str, CUDA_MAJORS):
            words = " or ".join(map(str, CUDA_MAJORS))
            raise ImportError(f"nsa_kernel: NSA_KERNEL_CUDA_MAJOR is {forced!r}, must be {words}")
        if int(forced) not in installed:
            raise ImportError(
                f"nsa_kernel: NSA_KERNEL_CUDA_MAJOR is {forced}, but nsa-kernel-cu{forced} is not installed; run: "
                + pip_command(int(forced))
            )
        return int(forced)
    if len(installed) == 1:
        return installed[0]
    driver = driver_major()
    if not installed:
        wanted = CUDA_MAJORS[0] if driver and driver <= CUDA_MAJORS[0] else CUDA_MAJORS[-1]
        unfit = " and ".join(misfit(package) for package in map(package_of, CUDA_MAJORS) if find_spec(package))
        raise ImportError(f"nsa_kernel: {unfit or 'no extension is installed'}; run: {pip_command(wanted)}")
    if driver is None:
        return installed[-1]
    return max((major for major in installed if major <= driver), default=installed[0])


def is_installed(major: int) -> bool:
    """Whether there is an extension for this CUDA and this Python."""
    package = package_of(major)
    found = find_spec(package) and find_spec(f"{package}._ext")
    return bool(found and found.origin and fits(found.origin))


def load() -> ModuleType:
    """Imports the chosen extension, which must be of this very version."""
    ours = version()
    major = choose([major for major in CUDA_MAJORS if is_installed(major)], os.environ.get("NSA_KERNEL_CUDA_MAJOR"))
    extension = importlib.import_module(f"{package_of(major)}._ext")
    if extension.__version__ != ours:
        raise ImportError(
            f"nsa_kernel: nsa-kernel-cu{major} is version {extension.__version__}, must be {ours}; run: "
            + pip_command(major)
        )
    return extension


sys.modules[__name__] = load()
