"""What tests download: named on the terminal, and kept in build/peers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PEERS = Path(__file__).parents[1] / "build" / "peers"


def fetched(config, name, *packages):
    """The folder that has these packages, without their dependencies. Skips the test where they cannot be fetched."""
    folder = PEERS / "{}-py{}.{}".format(name, *sys.version_info)
    if folder.is_dir():
        return folder
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\ndownloads {', '.join(packages)} into {folder.relative_to(PEERS.parents[1])}, once", flush=True)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--retries=1"]
    done = subprocess.run(
        [*command, "--upgrade", "--target", unfinished, *packages], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = f"{packages[0]} cannot be fetched: {done.stderr.strip().splitlines()[-1:]}"
        if os.environ.get("NSA_KERNEL_TEST_DOWNLOADS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    unfinished.rename(folder)
    return folder
