"""The command line: `python -m nsa_kernel`."""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__, _ext, get_kernel_info
from .tools import benchmark, demo, verify
from .tools.output import table

# Headers, library and CMake package lie beside the extension, which may be another distribution's.
INSTALLED = Path(_ext.__file__).parent
CMAKE_DIR = INSTALLED / "lib" / "cmake" / "nsa_kernel"
INCLUDE_DIR = INSTALLED / "include"

COMMANDS = {
    "info": "prints what this build holds and which devices it can use",
    "demo": "fills the metadata of a small batch, on the GPU where there is one",
    "selftest": "compares every variant and mode with plain Python loops, on every device",
    "bench": "times launches on this machine",
}


def show_info() -> None:
    """Prints what `get_kernel_info` returns, for people."""
    info = get_kernel_info()
    lines = [
        ("version", info["version"]),
        ("backend", info["backend"]),
        *([] if info["available"] else [("no GPU", info["reason"])]),
        ("CUDA", info["cuda_version"] or "none"),
        ("architectures", " ".join(info["architectures"]) or "none"),
    ]
    for index, device in enumerate(info["devices"]):
        unusable = "" if device["usable"] else ", not one of the architectures"
        lines.append(
            (f"cuda:{index}", f"{device['name']}, compute capability {device['compute_capability']}{unusable}")
        )
    for name, how in info["variants"].items():
        lines.append((name, f"{how} (default)" if name == info["default"] else how))
    lines.append(("extension", _ext.__file__))
    table(lines, left=2)


def parse(argv: Sequence[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Reads the arguments of every command but `bench`, which reads its own."""
    parser = argparse.ArgumentParser(prog="python -m nsa_kernel", description="Metadata for native sparse attention.")
    parser.add_argument("--version", action="version", version=f"nsa_kernel {__version__}")
    folders = parser.add_mutually_exclusive_group()
    folders.add_argument("--cmake-dir", action="store_true", help="print the folder of nsa_kernel-config.cmake")
    folders.add_argument("--include-dir", action="store_true", help="print the folder of the C++ headers")
    commands = parser.add_subparsers(dest="command", metavar="command")
    for name, what in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        if name == "info":
            command.add_argument("--json", action="store_true", help="print JSON for programs")
    return parser, parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["bench"]:
        return benchmark.main(argv[1:])
    parser, options = parse(argv)
    if options.cmake_dir:
        print(CMAKE_DIR)
    elif options.include_dir:
        print(INCLUDE_DIR)
    elif options.command == "info":
        if options.json:
            print(json.dumps(get_kernel_info(), indent=2))
        else:
            show_info()
    elif options.command == "demo":
        demo.run()
    elif options.command == "selftest":
        return verify.run()
    else:
        parser.print_help()
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # the reader of a pipe may leave, as head does
    sys.exit(main())
