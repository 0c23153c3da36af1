"""`python -m nsa_kernel`: every command, with the devices present and with none."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nsa_kernel
import pytest

# Replaces an op by one that does nothing, then runs the command line as `python -m nsa_kernel` would.
BROKEN = """
import runpy, sys
import nsa_kernel
nsa_kernel.{name} = lambda *args, **kwargs: None
sys.argv = ["nsa_kernel", "selftest"]
runpy.run_module("nsa_kernel", run_name="__main__")
"""


def run(*arguments, gpu=True):
    environment = os.environ if gpu else os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment, timeout=300
    )


def output(*arguments, gpu=True):
    done = run("-m", "nsa_kernel", *arguments, gpu=gpu)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


@pytest.fixture(params=[True, False], ids=["devices present", "no device"])
def gpu(request):
    """Whether the command may see a GPU."""
    return request.param


def test_info_for_programs_is_the_kernel_info(gpu):
    info = json.loads(output("info", "--json", gpu=gpu))
    assert info.keys() >= nsa_kernel.get_kernel_info().keys() - {"reason"}
    if gpu:
        assert info == json.loads(json.dumps(nsa_kernel.get_kernel_info()))
    else:
        assert info["available"] is False
        assert info["backend"] == "CPU C++"
        assert info["reason"]


def test_info_for_people_says_what_and_why_not(gpu):
    text = output("info", gpu=gpu)
    info = json.loads(output("info", "--json", gpu=gpu))
    assert info["version"] in text
    assert info["backend"] in text
    assert info.get("reason", "") in text
    for device in info["devices"]:
        assert device["name"] in text


def test_demo_shows_both_ops(gpu):
    text = output("demo", gpu=gpu)
    assert len(text.splitlines()) > 5
    for word in ("draft.extend", "replay"):
        assert re.search(word, text, re.IGNORECASE)


def test_selftest_passes_on_every_device(gpu):
    text = output("selftest", gpu=gpu).lower()
    assert "cpu" in text
    if gpu and nsa_kernel.is_cuda_kernel_available():
        assert "cuda" in text


@pytest.mark.parametrize("name", ["fill_draft_extend_metadata", "fill_replay_metadata"])
def test_selftest_fails_on_a_mismatch(name):
    done = run("-c", BROKEN.format(name=name), gpu=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_cmake_dir_holds_the_package():
    directory = Path(output("--cmake-dir").strip())
    assert directory.is_dir()
    assert (directory / "nsa_kernel-config.cmake").is_file()


def test_include_dir_holds_the_headers():
    directory = Path(output("--include-dir").strip())
    assert {header.name for header in (directory / "nsa_kernel").iterdir()} >= {"draft_extend.h", "replay.h", "types.h"}


def test_help_names_every_command():
    text = output("--help")
    for command in ("info", "demo", "selftest", "bench", "--cmake-dir", "--include-dir"):
        assert command in text


def test_an_unknown_command_is_refused():
    done = run("-m", "nsa_kernel", "dance")
    assert done.returncode == 2
    assert "dance" in done.stderr
