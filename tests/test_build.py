"""How a checkout is built: what make says and asks for, and where the CUDA compiler comes from."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGING = ROOT / "packaging"

# In place of an environment's Python: prints what would be built.
STAND_IN = '#!/bin/bash\necho "$NSA_KERNEL_CUDA,${CUDAARCHS-unset} ${*: -1}"\n'
GPU = '#!/bin/bash\necho "GPU 0: NVIDIA H100"\n'
NO_GPU = '#!/bin/bash\necho "NVIDIA-SMI has failed"\nexit 9\n'


def run(*command, **environment):
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=120
    )


def output(*command, **environment):
    done = run(*command, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def program(tmp_path):
    """Writes a program that a search of PATH meets first; returns its path and that PATH."""

    def write(name, text):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path, f"{path.parent}:{os.environ['PATH']}"

    return write


# What is built.


ON_ITS_GPUS = "with CUDA, for the GPUs of this machine; NSA_KERNEL_CUDA=ON compiles the kernels for every GPU"
ON_THE_CPU = "for the CPU alone: no NVIDIA driver was found; NSA_KERNEL_CUDA=ON compiles the kernels, for every GPU"


@pytest.mark.parametrize(
    ("smi", "asked", "built", "said"),
    [
        (GPU, {}, "ON,native", [ON_ITS_GPUS]),
        (GPU, {"CUDAARCHS": "90"}, "ON,90", [ON_ITS_GPUS]),
        (GPU, {"NSA_KERNEL_CUDA": "ON"}, "ON,", []),
        (GPU, {"NSA_KERNEL_CUDA": "OFF"}, "OFF,", []),
        (NO_GPU, {}, "OFF,", [ON_THE_CPU]),
        (NO_GPU, {"NSA_KERNEL_CUDA": "ON"}, "ON,", []),
        (NO_GPU, {"NSA_KERNEL_CUDA": "ON", "CUDAARCHS": "75"}, "ON,75", []),
    ],
)
def test_the_machine_decides_unless_it_is_told(program, smi, asked, built, said):
    program("nvidia-smi", smi)
    python, path = program("python", STAND_IN)
    environment = {"PATH": path, "NSA_KERNEL_CUDA": "", "CUDAARCHS": ""} | asked
    *lines, _, install = output(PACKAGING / "install.sh", python, **environment).splitlines()
    assert install == f"{built} ."
    assert [line.strip() for line in lines] == said


def test_make_builds_anew_what_is_asked_for_anew(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    asked = tmp_path / "build" / "asked"

    def age_after(**environment):
        output("make", "-C", tmp_path, "build/asked", **{"NSA_KERNEL_CUDA": "", "CUDAARCHS": ""} | environment)
        return asked.stat().st_mtime_ns

    first = age_after()
    assert age_after() == first
    second = age_after(NSA_KERNEL_CUDA="ON")
    assert second > first
    assert age_after(NSA_KERNEL_CUDA="ON") == second
    assert age_after(NSA_KERNEL_CUDA="ON", CUDAARCHS="90") > second


# What is said.


def test_a_step_says_what_it_is_for_and_how_long_it_took():
    assert output(PACKAGING / "step.sh", "a nap", "sleep", "1").splitlines() in (
        ["== a nap", f"   took {seconds} s"] for seconds in range(1, 60)
    )
    failed = run(PACKAGING / "step.sh", "a fall", "false")
    assert (failed.returncode, failed.stdout) == (1, "== a fall\n")


def test_make_help_names_every_target():
    targets = output("make", "help")
    for target in ("demo", "test", "lint", "asan", "gpu-check", "wheels", "clean"):
        assert f"\n{target} " in f"\n{targets}"


def test_an_incomplete_python_is_named_and_nothing_is_installed(program, tmp_path):
    python, path = program("python", "#!/bin/bash\nexit 1\n")
    program("apt-get", f"#!/bin/bash\ntouch {tmp_path}/installed\n")
    done = run(PACKAGING / "make_venv.sh", python, tmp_path / "venv", PATH=path)
    assert done.returncode == 1
    assert done.stderr == (
        f"{python} has no ensurepip or no Python.h, must have both (Debian: apt install python3-venv python3-dev)\n"
    )
    assert not (tmp_path / "installed").exists()


# The CUDA compiler.

COMPILER = "cuda-toolkit[nvcc,crt,nvvm,cudart,cccl]==13.0.*\n"


def requested(*without, **environment):
    """What the build asks the package index for, beside what every build needs."""
    pytest.importorskip("scikit_build_core")
    done = run(*without, sys.executable, PACKAGING / "backend.py", **environment)
    if without and "unshare" in done.stderr:
        pytest.skip(f"a toolkit is here and cannot be hidden: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return done.stdout.lstrip("\n")


def test_the_machines_compiler_is_taken(program):
    nvcc, path = program("nvcc", "#!/bin/bash\n")
    for environment in ({"PATH": path}, {"CUDA_HOME": str(nvcc.parents[1])}, {"CUDACXX": str(nvcc)}):
        assert requested(NSA_KERNEL_CUDA="ON", **environment) == ""


@pytest.mark.parametrize(("cuda", "compiler"), [("ON", COMPILER), ("OFF", "")])
def test_a_compiler_is_asked_for_where_there_is_none_and_cuda_is_wanted(cuda, compiler):
    assert requested(PACKAGING / "without_toolkit.sh", NSA_KERNEL_CUDA=cuda) == compiler
