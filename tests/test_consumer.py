"""A C++ project that finds the package with CMake, links it, and runs the ops."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nsa_kernel
import pytest

SOURCE = Path(__file__).parent / "consumer"
CMAKE = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
COMPILER = shutil.which("g++") or shutil.which("c++")


def installed_package():
    command = [sys.executable, "-m", "nsa_kernel", "--cmake-dir"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def run(*command):
    """Without the sanitizers that `make asan` loads into Python: a CMake that has them may never end."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not (CMAKE and COMPILER), reason="needs CMake and a C++ compiler")
@pytest.mark.parametrize("toolkit", os.environ.get("NSA_KERNEL_TOOLKITS", "").split())
def test_the_consumer_may_have_a_cuda_runtime_of_its_own(toolkit, tmp_path):
    """Of the library's major version or of another one. NSA_KERNEL_TOOLKITS has the folders of CUDA toolkits."""
    runtime = min(Path(toolkit).glob("lib*/libcudart.so*"))
    places = {"CMAKE_PREFIX_PATH": installed_package(), "CUDAToolkit_ROOT": toolkit, "CUDA_CUDART": runtime}
    run(CMAKE, "-S", SOURCE, "-B", tmp_path, *(f"-D{name}={place}" for name, place in places.items()))
    run(CMAKE, "--build", tmp_path)
    lines = run(tmp_path / "consumer").splitlines()
    major = re.search(r"#define CUDART_VERSION +(\d+)0\d0", (Path(toolkit) / "include/cuda_runtime_api.h").read_text())[
        1
    ]
    assert [line for line in lines if line.startswith(f"CUDA {major}.")]
    assert "cpu ok" in lines


@pytest.mark.skipif(not (CMAKE and COMPILER), reason="needs CMake and a C++ compiler")
@pytest.mark.parametrize("origin", ["python package", "cmake --install"])
def test_the_consumer_builds_and_runs(origin, tmp_path, request):
    """The prefix of a `cmake --install` comes from the environment variable NSA_KERNEL_PREFIX."""
    prefix = installed_package() if origin == "python package" else os.environ.get("NSA_KERNEL_PREFIX")
    if not prefix:
        pytest.skip("NSA_KERNEL_PREFIX is not set")
    run(CMAKE, "-S", SOURCE, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}", "-DCMAKE_BUILD_TYPE=Release")
    run(CMAKE, "--build", tmp_path)
    lines = run(tmp_path / "consumer").splitlines()
    assert lines[0] == f"nsa_kernel {nsa_kernel.__version__}"
    if origin == "python package" and nsa_kernel.get_kernel_info()["cuda_version"]:
        (unpacked,) = tmp_path.glob("nsa_kernel-*")
        machine_code = (unpacked / "machine_code").read_bytes()
        assert machine_code.startswith(b"\x50\xed\x55\xba")  # what a fat binary begins with
        assert machine_code in (unpacked / "lib" / "libnsa_kernel.a").read_bytes()
    assert "cpu ok" in lines
    if shutil.which("nvcc") and nsa_kernel.is_cuda_kernel_available():
        assert "cuda:0 ok" in lines


@pytest.mark.skipif(not CMAKE, reason="needs CMake")
@pytest.mark.skipif(not nsa_kernel.get_kernel_info()["cuda_version"], reason="without CUDA nothing is unpacked")
def test_a_project_without_a_language_is_told_what_is_missing(tmp_path):
    text = "cmake_minimum_required(VERSION 3.25)\nproject(parent LANGUAGES NONE)\nfind_package(nsa_kernel REQUIRED)\n"
    (tmp_path / "CMakeLists.txt").write_text(text)
    command = [CMAKE, "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed_package()}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "enable the language CXX first" in " ".join(done.stderr.split())


PARENT = """
cmake_minimum_required(VERSION 3.25)
project(parent LANGUAGES CXX)
set(NSA_KERNEL_CUDA OFF)
"""
ROOT = SOURCE.parents[1]
ADD_SUBDIRECTORY = f'add_subdirectory("{ROOT}" nsa_kernel)\n'
FETCH_CONTENT = f"""
include(FetchContent)
FetchContent_Declare(nsa_kernel SOURCE_DIR "{ROOT}")
FetchContent_MakeAvailable(nsa_kernel)
"""


@pytest.mark.skipif(not (CMAKE and COMPILER), reason="needs CMake and a C++ compiler")
@pytest.mark.parametrize("build_type", ["", "Debug"])
def test_a_parent_project_installs_a_package_that_works(build_type, tmp_path):
    """The parent says which build it is, also by saying nothing."""
    (tmp_path / "CMakeLists.txt").write_text(PARENT + ADD_SUBDIRECTORY)
    build, prefix, consumer = tmp_path / "build", tmp_path / "prefix", tmp_path / "consumer"
    run(CMAKE, "-S", tmp_path, "-B", build, f"-DCMAKE_BUILD_TYPE={build_type}", "-DNSA_KERNEL_INSTALL=ON")
    run(CMAKE, "--build", build, "--parallel")
    run(CMAKE, "--install", build, "--prefix", prefix)
    run(CMAKE, "-S", SOURCE, "-B", consumer, f"-DCMAKE_PREFIX_PATH={prefix}")
    run(CMAKE, "--build", consumer)
    assert "cpu ok" in run(consumer / "consumer")


@pytest.mark.skipif(not (CMAKE and COMPILER), reason="needs CMake and a C++ compiler")
def test_a_parent_project_may_enable_cuda_afterwards(tmp_path, monkeypatch):
    """And has the GPUs of the library."""
    monkeypatch.setenv("NSA_KERNEL_PYTHON_PATH", os.pathsep.join(sys.path))
    search = [CMAKE, "-P", ROOT / "packaging" / "find_nvcc.cmake"]
    if subprocess.run(search, capture_output=True, check=False).returncode:
        pytest.skip("needs nvcc")
    kernel = (
        "enable_language(CUDA)\nadd_executable(parent kernel.cu)\nget_target_property(gpus parent CUDA_ARCHITECTURES)\n"
    )
    text = PARENT.replace("OFF", "ON") + ADD_SUBDIRECTORY + kernel + 'message(STATUS "${gpus} for the parent")\n'
    (tmp_path / "CMakeLists.txt").write_text(text)
    (tmp_path / "kernel.cu").touch()
    monkeypatch.setenv("CUDAARCHS", "90")
    for _ in range(2):  # also when it is configured again
        assert "-- 90 for the parent\n" in run(CMAKE, "-S", tmp_path, "-B", tmp_path / "build")


@pytest.mark.skipif(not (CMAKE and COMPILER), reason="needs CMake and a C++ compiler")
@pytest.mark.parametrize("added", [ADD_SUBDIRECTORY, FETCH_CONTENT], ids=["add_subdirectory", "FetchContent"])
def test_a_parent_project_installs_nothing_of_ours_unasked(added, tmp_path):
    program = f'add_executable(parent "{SOURCE}/main.cpp")\ntarget_link_libraries(parent nsa_kernel::nsa_kernel)\n'
    (tmp_path / "CMakeLists.txt").write_text(PARENT + added + program + "install(TARGETS parent)\n")
    build, prefix = tmp_path / "build", tmp_path / "prefix"
    run(CMAKE, "-S", tmp_path, "-B", build)
    run(CMAKE, "--build", build, "--parallel")
    run(CMAKE, "--install", build, "--prefix", prefix)
    assert [path for path in prefix.rglob("*") if path.is_file()] == [prefix / "bin" / "parent"]
    assert "cpu ok" in run(prefix / "bin" / "parent")
