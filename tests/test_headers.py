"""The public headers: each compiles alone, and keeps to the C++ standard library."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HEADERS = ["draft_extend.h", "error.h", "indexer.h", "info.h", "replay.h", "schedule.h", "types.h"]
COMPILER = shutil.which("g++") or shutil.which("c++")


@pytest.fixture(scope="module")
def include_dir():
    command = [sys.executable, "-m", "nsa_kernel", "--include-dir"]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


def test_all_headers_are_known_here(include_dir):
    assert sorted(path.name for path in (include_dir / "nsa_kernel").iterdir()) == HEADERS


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("header", HEADERS)
def test_a_header_compiles_alone(include_dir, header):
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror", "-fsyntax-only", "-x", "c++", "-"]
    source = f'#include "nsa_kernel/{header}"\n#include "nsa_kernel/{header}"\nint main() {{}}\n'
    done = subprocess.run(
        [COMPILER, f"-I{include_dir}", *flags], input=source, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_includes_only_the_standard_library_and_its_own(include_dir, header):
    text = (include_dir / "nsa_kernel" / header).read_text()
    assert not re.search(r"^\s*#\s*define", text, re.MULTILINE)
    for name in re.findall(r'#include\s+[<"]([^>"]+)[>"]', text):
        assert re.fullmatch(r"[a-z_]+|nsa_kernel/\w+\.h", name), name
