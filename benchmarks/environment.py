"""The machine and the versions that a run was made with."""

import datetime
import importlib.metadata
import platform
import re
import subprocess

import nsa_kernel
import torch
from nsa_kernel.tools.devices import cpu_name


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, check=True, capture_output=True, text=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment(device: str) -> dict[str, str | int | None]:
    """What a reader needs to judge the times; values that do not apply are None."""
    on_gpu = device == "cuda"
    properties = torch.cuda.get_device_properties(0) if on_gpu else None
    return {
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "multiprocessors": properties.multi_processor_count if properties else None,
        "l2_bytes": properties.L2_cache_size if properties else None,
        "driver": _driver() if on_gpu else None,
        "cuda": torch.version.cuda if on_gpu else None,
        "nsa_kernel": nsa_kernel.__version__,
        "nsa_kernel_cuda": nsa_kernel.get_kernel_info().get("cuda_version"),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "numpy": _version("numpy"),
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "system": f"{platform.system()} {platform.release()}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def folder_name(known: dict[str, str | int | None]) -> str:
    """The GPU's name, or the CPU's, as a folder."""
    return re.sub(r"[^a-z0-9]+", "-", str(known["gpu"] or known["cpu"]).lower()).strip("-")
