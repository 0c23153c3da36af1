"""`python -m nsa_kernel`: every command, with the devices present and with none."""

import contextlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import nsa_kernel
import processes
import pytest


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


def child_tests_an_op_that_does_nothing(name):
    setattr(nsa_kernel, name, lambda *args, **kwargs: None)
    sys.argv = ["nsa_kernel", "selftest"]
    with contextlib.redirect_stderr(io.StringIO()) as errors, pytest.raises(SystemExit) as status:
        runpy.run_module("nsa_kernel", run_name="__main__")
    assert status.value.code == 1
    assert "Traceback" not in errors.getvalue()


@pytest.mark.parametrize("name", ["fill_draft_extend_metadata", "fill_replay_metadata"])
def test_selftest_fails_on_a_mismatch(name):
    assert "FAILED" in processes.run(child_tests_an_op_that_does_nothing, name, timeout=300, CUDA_VISIBLE_DEVICES="")


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
