"""What tests download: named on the terminal, and kept in build/peers."""

import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

PEERS = Path(__file__).parents[1] / "build" / "peers"
PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "--retries=1", "--upgrade", "--target"]
DOWNLOADER = "unearth==0.19.0"  # of source distributions, which pip would build


def fetched(config, name, *packages, source=None):
    """The folder that has these packages, without their dependencies, and the Python files of a source distribution.

    Skips the test where they cannot be fetched.
    """
    folder = PEERS / "{}-py{}.{}{}".format(name, *sys.version_info[:2], sys.abiflags)
    PEERS.mkdir(parents=True, exist_ok=True)
    with open(PEERS / f"{folder.name}.lock", "w") as lock:  # processes of a parallel run wait for each other
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            fetch(config, folder, packages, source)
    return folder


def fetch(config, folder, packages, source):
    wanted = [*filter(None, [source]), *packages]
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        where = folder.relative_to(PEERS.parents[1])
        print(f"\ndownloads {', '.join(wanted)} into {where}, once", file=sys.stderr, flush=True)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    commands = [[*PIP, unfinished, "--no-deps", *packages]]
    if source:
        index = ["--index-url", os.environ["PIP_INDEX_URL"]] if "PIP_INDEX_URL" in os.environ else []
        commands.append([*PIP, unfinished / "tools", DOWNLOADER])
        commands.append([sys.executable, "-m", "unearth", *index, "--no-binary", "--download", unfinished, source])
    for command in commands:
        environment = os.environ | {"PYTHONPATH": str(unfinished / "tools")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = f"{wanted[0]} cannot be fetched: {done.stderr.strip().splitlines()[-1:]}"
            if os.environ.get("NSA_KERNEL_TEST_DOWNLOADS") == "required":
                pytest.fail(reason)
            pytest.skip(reason)
    for archive in unfinished.glob("*.tar.gz"):
        unpack_python(archive, unfinished)
        archive.unlink()
    shutil.rmtree(unfinished / "tools", ignore_errors=True)
    unfinished.rename(folder)


def unpack_python(archive, folder):
    """Unpacks the packages of a source distribution, and of those the Python files alone."""
    package = archive.name.partition("-")[0]
    with tarfile.open(archive) as members:
        for member in members:
            _, _, member.name = member.name.partition("/")
            if member.name.startswith(f"{package}/") and member.name.endswith(".py"):
                members.extract(member, folder, filter="data")
