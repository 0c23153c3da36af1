"""The devices of this machine, and arrays on them: the standard library's on the CPU, torch's or CuPy's on a GPU."""

import contextlib
import importlib
import math
import platform
import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import get_kernel_info

FRAMEWORKS = ("torch", "cupy")


@dataclass(frozen=True)
class Device:
    """One device. Its arrays can be sliced and have `tolist`."""

    name: str
    make: Callable[[list[int], str], Any]
    reshape: Callable[[Any, Sequence[int]], Any]
    current: contextlib.AbstractContextManager[Any]

    def array(self, values: Iterable[int], dtype: str = "int32") -> Any:
        """A new array of one dimension, int32 or int64."""
        return self.make(list(values), dtype)

    def full(self, shape: Sequence[int], value: int) -> Any:
        """A new int32 array of any shape."""
        return self.reshape(self.array([value] * math.prod(shape)), shape)


def cpu() -> Device:
    """The CPU, which needs no framework."""
    codes = {"int32": "i", "int64": "q"}
    return Device(
        "cpu",
        lambda values, dtype: memoryview(array(codes[dtype], values)),
        lambda flat, shape: flat if len(shape) == 1 else flat.cast("B").cast("i", shape),
        contextlib.nullcontext(),
    )


def cpu_name() -> str:
    """The model of the CPU."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def gpus() -> tuple[list[Device], dict[str, str]]:
    """The GPUs that can be used; and by name, why another, or CUDA as a whole, cannot."""
    info = get_kernel_info()
    if not info["devices"]:
        return [], {"cuda": str(info["reason"])}
    framework = _framework() if info["available"] else None
    usable: list[Device] = []
    unusable: dict[str, str] = {}
    for index, device in enumerate(info["devices"]):
        name = f"cuda:{index} ({device['name']})"
        if not device["usable"]:
            unusable[name] = f"this build has no code for compute capability {device['compute_capability']}"
        elif framework is None:
            unusable[name] = "its arrays need torch or CuPy, and neither is installed with CUDA"
        else:
            usable.append(_gpu(framework, index, name))
    return usable, unusable


def _framework() -> Any:
    """The first framework that is installed and sees a GPU."""
    for name in FRAMEWORKS:
        try:
            framework: Any = importlib.import_module(name)
        except (ImportError, OSError):  # absent, or a library that it needs is
            continue
        if framework.cuda.is_available():
            return framework
    return None


def _gpu(framework: Any, index: int, name: str) -> Device:
    """One GPU. Arrays are made while it is current."""
    if framework.__name__ == "torch":
        current, place = framework.cuda.device(index), {"device": f"cuda:{index}"}
    else:
        current, place = framework.cuda.Device(index), {}
    make = framework.tensor if framework.__name__ == "torch" else framework.array
    return Device(
        name,
        lambda values, dtype: make(values, dtype=getattr(framework, dtype), **place),
        lambda flat, shape: flat.reshape(tuple(shape)),
        current,
    )
