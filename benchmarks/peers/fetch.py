"""Fetches SGLang's released wheel and keeps the two files of it that the benchmarks time."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "0.5.23"
WHEEL_TAGS = ["--python-version", "3.11", "--platform", "manylinux_2_34_x86_64"]
FOLDER = Path(__file__).resolve().parents[2] / "build" / "peers"
FILES = {
    "sglang/kernels/ops/attention/dsa/metadata.py": "sglang_dsa_metadata.py",
    "sglang/kernels/ops/attention/pad.py": "sglang_pad.py",
}


def fetch(folder: Path = FOLDER) -> None:
    """Downloads the wheel without its dependencies and takes the files out of it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *WHEEL_TAGS]
        subprocess.run([*pip, "--dest", scratch, f"sglang=={VERSION}"], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for member, name in FILES.items():
                (folder / name).write_bytes(archive.read(member))
                print(folder / name)


if __name__ == "__main__":
    fetch(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
