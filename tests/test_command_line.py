"""`python -m nsa_kernel`: every command, with the devices present and with none."""

import contextlib
import io
import json
import os
import pty
import re
import runpy
import subprocess
import sys
from pathlib import Path

import nsa_kernel
import processes
import pytest
from nsa_kernel.tools import devices, verify
from nsa_kernel.tools.output import table


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


@pytest.mark.parametrize("command", ["info", "demo", "selftest"])
def test_a_missing_driver_is_told_in_plain_words(command):
    """CUDA's own words for it are about versions."""
    if nsa_kernel.get_kernel_info().get("reason") != "no NVIDIA driver was found":
        pytest.skip("a driver is here, or no code that needs one")
    text = output(command)
    assert re.search(r"(: |\s|, )no NVIDIA driver was found$", text, re.MULTILINE)
    assert "insufficient" not in text


def test_why_no_gpu_can_be_used_is_what_the_library_says(monkeypatch):
    monkeypatch.setattr(devices, "get_kernel_info", lambda: {"devices": [], "reason": "none is here"})
    assert devices.gpus() == ([], {"cuda": "none is here"})


def test_demo_shows_the_ops(gpu):
    text = output("demo", gpu=gpu)
    assert len(text.splitlines()) > 5
    for word in ("draft.extend", "replay", "indexer"):
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


@pytest.mark.parametrize(
    "name",
    [
        "fill_draft_extend_metadata",
        "fill_replay_metadata",
        "fill_indexer_decode_metadata",
        "fill_indexer_prefill_metadata",
        "fill_token_requests",
    ],
)
def test_selftest_fails_on_a_mismatch(name):
    assert "FAILED" in processes.run(child_tests_an_op_that_does_nothing, name, CUDA_VISIBLE_DEVICES="")


def child_tests_a_refresh_that_forgets(output):
    refresh = nsa_kernel.fill_replay_metadata

    def forgets(*args, **kwargs):
        refresh(*args, **{name: value for name, value in kwargs.items() if not name.startswith(output)})

    nsa_kernel.fill_replay_metadata = forgets
    assert verify.run() == 1


@pytest.mark.parametrize("output", ["schedule", "topk_plan"])
def test_selftest_fails_without_a_schedule_or_a_plan(output):
    printed = processes.run(child_tests_a_refresh_that_forgets, output, CUDA_VISIBLE_DEVICES="")
    assert re.search(rf"fill_replay_metadata, .*{output}_format .*: {output}\[0\] is -77, must be", printed)


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


def test_a_command_says_what_it_does():
    assert "\n\nFills the metadata of a small batch, on the GPU where there is one.\n\n" in output("demo", "--help")


def test_an_unknown_command_is_refused():
    done = run("-m", "nsa_kernel", "dance")
    assert done.returncode == 2
    assert "dance" in done.stderr


def test_the_version_is_told():
    assert output("--version") == f"nsa_kernel {nsa_kernel.__version__}\n"


def test_bench_names_the_cpu_and_aligns_its_columns():
    first, *lines = output("bench", "--device", "cpu", "--rounds", "1").splitlines()
    assert first == f"{devices.cpu_name()}: microseconds, median of 1 rounds"
    assert devices.cpu_name() not in ("", "x86_64")
    heads = [line for line in lines if line.endswith("quarter points")]
    rows = [line for line in lines if " to " in line and not line.startswith("replay")]
    assert len(set(heads)) == 1
    assert len(rows) == len([line for line in lines if line]) - 2 * len(heads)
    for row in rows:
        assert len(row) == len(heads[0])
        assert re.fullmatch(r" *[0-9.]+", row[: heads[0].index("host") + len("host")][-8:])


def test_columns_stand_under_their_heads(capsys):
    table([["a", 1, 22], ["bb", 333, 4]], ["name", "n", "m"])
    assert capsys.readouterr().out.splitlines() == ["name    n   m", "a       1  22", "bb    333   4"]
    table([["a", "1 2"], ["bb", "3"]], left=2)
    assert capsys.readouterr().out.splitlines() == ["a   1 2", "bb  3"]


# Pipes and terminals.


@pytest.mark.parametrize("command", ["info", "demo", "--help"])
def test_a_reader_that_leaves_is_no_error(command):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        command = [sys.executable, "-m", "nsa_kernel", command]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False, timeout=300)
    assert done.stderr == ""
    assert done.returncode < 0  # as every command that writes to a closed pipe


def on_a_terminal(*arguments, **environment):
    """What a terminal shows."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "200"} | environment
    with subprocess.Popen(
        [sys.executable, "-m", "nsa_kernel", *arguments], stdout=theirs, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # what the end of a terminal is on Linux
            while more := os.read(ours, 1 << 16):
                shown += more
    os.close(ours)
    assert process.returncode == 0, shown
    return shown.decode().replace("\r\n", "\n")


def plain(text):
    """Words and numbers, without frames, colours and progress."""
    return re.sub(r"\x1b\[[0-9;]*m|[─\s]+", " ", re.sub(r"\r\x1b\[K[^\x1b\n]*", "", text)).split()


@pytest.fixture
def without_rich(tmp_path):
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text("raise ImportError('hidden')\n")
    return os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.mark.parametrize("command", ["info", "demo"])
def test_a_terminal_without_rich_shows_what_a_pipe_gets(command, without_rich):
    assert on_a_terminal(command, PYTHONPATH=without_rich) == output(command)


@pytest.mark.parametrize("command", ["info", "demo"])
def test_a_terminal_with_rich_shows_the_same_in_colours(command):
    pytest.importorskip("rich")
    shown = on_a_terminal(command)
    assert "\x1b[" in shown
    assert plain(shown) == output(command).split()
    assert "\x1b[3" not in on_a_terminal(command, NO_COLOR="1")


@pytest.mark.parametrize("command", [["bench", "--device", "cpu", "--rounds", "1"], ["selftest"]])
def test_long_work_shows_how_far_it_is(command, without_rich):
    shown = on_a_terminal(*command, PYTHONPATH=without_rich)
    assert re.search(r"\r\x1b\[K(1 of 5: draft_extend|cpu: \d+ runs)", shown)
    assert "\r\x1b[K\n" in shown or "\r\x1b[Kcpu: ok" in shown
