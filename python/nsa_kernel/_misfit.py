"""An extension that this Python cannot load: what was found, what was looked for, and the command to run."""

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

STABLE_ABI = ".abi3.so"
OLDEST = (3, 12)  # for the stable ABI; an older Python takes the name for its own, and lacks what the file needs of it


def fits(file: str) -> bool:
    """Whether a file that Python finds is for this one."""
    return not file.endswith(STABLE_ABI) or sys.version_info >= OLDEST


def misfit(package: str) -> str:
    """What the folder of a package has, and what this Python looked for in it."""
    from importlib.resources import files  # noqa: PLC0415 (only a failure needs it)

    folder = files(package)
    there = sorted(entry.name for entry in folder.iterdir() if entry.name.startswith("_ext.") and ".so" in entry.name)
    found = [name if fits(name) else f"{name} for Python {OLDEST[0]}.{OLDEST[1]} or later" for name in there]
    wanted = " or ".join(f"_ext{suffix}" for suffix in EXTENSION_SUFFIXES if fits(suffix))
    return f"{str(folder).rstrip('/')} has {' and '.join(found) or 'no extension'}, must be a folder with {wanted}"


def build_command() -> str:
    """How to get the extension into this folder, or a folder that has it."""
    folder = Path(__file__).parent
    if not folder.is_dir():
        archive = next(parent for parent in folder.parents if parent.is_file())
        return f"{sys.executable} -m zipfile --extract {archive} FOLDER, and import from FOLDER"
    checkout = folder.parents[1]
    if (checkout / "CMakeLists.txt").is_file():
        return f"{sys.executable} -m pip install {checkout}, and import outside {folder.parent}"
    return f"{sys.executable} -m pip install . in a checkout of nsa-kernel"


def explain(error: ImportError) -> None:
    """Raises what to do about an extension in this folder that Python took for its own and could not load."""
    if error.path and not fits(error.path):
        raise ImportError(f"nsa_kernel: {misfit(__package__)}; run: {build_command()}") from None
