"""The distributions: one version, the right files, and the extension that fits.

NSA_KERNEL_WHEELS names a folder of finished wheels to look into as well.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipapp
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import nsa_kernel
import pytest

ROOT = Path(__file__).parent.parent
BINARIES = {major: f"nsa-kernel-cu{major}" for major in (12, 13)}
HEADERS = {path.name for path in (ROOT / "cpp/include/nsa_kernel").iterdir()}
WHEELS = sorted(Path(os.environ["NSA_KERNEL_WHEELS"]).glob("*.whl")) if "NSA_KERNEL_WHEELS" in os.environ else []
LARGEST = int(0.85 * (2 << 20))  # bytes; the rest of 2 MiB is headroom


def pyproject(folder):
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text())


def project_version():
    return re.search(r"^project\(nsa_kernel VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE)[1]


def extension_distribution():
    """The installed distribution that holds the extension."""
    for name in ("nsa-kernel", *BINARIES.values()):
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if distribution.read_text("build.json"):
            return distribution
    pytest.fail("no installed distribution holds the extension")


def check_binary_files(names, package):
    """A distribution with the extension holds all that a C++ or Python user needs, and nothing of the sources."""
    inside = {name.removeprefix(package + "/") for name in names if name.startswith(package + "/")}
    assert [name for name in inside if re.fullmatch(r"_ext\..*so", name)]
    assert inside >= {"__init__.py", "_ext.pyi", "py.typed"}
    assert inside >= {f"include/nsa_kernel/{header}" for header in HEADERS}
    cmake = {f"nsa_kernel{end}" for end in ("-config.cmake", "-config-version.cmake", ".tar.xz")}
    assert inside >= {f"lib/cmake/nsa_kernel/{name}" for name in cmake}
    for part in ("nanobind", "robin_map"):
        assert [name for name in names if name.endswith(f".dist-info/licenses/{part}/LICENSE")]
    check_all_files(names)


def check_all_files(names):
    assert [name for name in names if re.search(r"dist-info/licenses/LICENSE$", name)]
    outside = [name for name in names if not re.match(r"nsa_kernel(_cu\d+)?(/|-[^/]*\.dist-info/)", name)]
    assert outside == []
    assert [name for name in names if re.search(r"\.(c|cc|cpp|cu|cuh)$|(^|/)(tests?[/_]|conftest)", name)] == []


# One version.


def test_one_version_everywhere():
    version = project_version()
    assert nsa_kernel.__version__ == version
    assert nsa_kernel.get_kernel_info()["version"] == version
    assert importlib.metadata.version("nsa-kernel") == version
    assert extension_distribution().version == version


def test_the_cmake_package_has_the_version():
    command = [sys.executable, "-m", "nsa_kernel", "--cmake-dir"]
    folder = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    text = (folder / "nsa_kernel-config-version.cmake").read_text()
    assert f'set(PACKAGE_VERSION "{project_version()}")' in text


def test_the_extras_ask_for_this_very_version():
    requires = importlib.metadata.requires("nsa-kernel")
    for name in BINARIES.values():
        extra = name.removeprefix("nsa-kernel-")
        assert f'{name}=={project_version()}; extra == "{extra}"' in requires


@pytest.mark.parametrize("major", BINARIES)
def test_a_binary_distribution_agrees_with_the_whole(major):
    whole, binary = pyproject("."), pyproject(f"packaging/cu{major}")
    package = f"nsa_kernel_cu{major}"
    assert binary["project"]["name"] == BINARIES[major]
    assert binary["build-system"]["requires"] == whole["build-system"]["requires"]
    for key in ("requires-python", "license-files"):
        assert binary["project"][key] == whole["project"][key]
    assert binary["project"]["license"] == f"{whole['project']['license']} AND BSD-3-Clause AND MIT"  # of what is in it
    ours, theirs = binary["tool"]["scikit-build"], whole["tool"]["scikit-build"]
    assert ours["wheel"]["install-dir"] == package
    assert ours["wheel"]["py-api"] == theirs["wheel"]["py-api"]
    (version,), (theirs_version, _) = (project["tool"]["dynamic-metadata"] for project in (binary, whole))
    assert version["regex"] == theirs_version["regex"]
    assert binary["project"]["entry-points"]["cmake.prefix"] == {"nsa_kernel": package}
    assert f"Environment :: GPU :: NVIDIA CUDA :: {major}" in binary["project"]["classifiers"]


# The right files.


def test_the_installed_distribution_is_complete():
    distribution = extension_distribution()
    names = [name for name in map(str, distribution.files) if "__pycache__" not in name]
    if any(name.startswith("_nsa_kernel_editable") or name.endswith(".pth") for name in names):
        pytest.skip("an editable install keeps its Python files in the source tree")
    check_binary_files(names, distribution.name.replace("-", "_"))


def test_the_metadata_says_what_was_built():
    build = json.loads(extension_distribution().read_text("build.json"))
    info = nsa_kernel.get_kernel_info()
    assert build == {"cuda_version": info["cuda_version"], "architectures": info["architectures"]}


@pytest.mark.parametrize("path", WHEELS, ids=lambda path: path.name)
def test_a_finished_wheel_holds_what_it_should(path):
    assert path.stat().st_size < LARGEST
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if not name.endswith("/")]
        if path.name.endswith("-none-any.whl"):
            inside = {name.removeprefix("nsa_kernel/") for name in names}
            python = {"__init__.py", "__main__.py", "_ext.py", "_misfit.py", "_version.py"}
            assert inside >= {*python, "_ext.pyi", "py.typed"}
            assert not [name for name in names if re.search(r"\.(a|h|so)$", name)]
            check_all_files(names)
            return
        package = re.match(r"nsa_kernel_cu(\d+)", path.name)
        check_binary_files(names, package[0])
        build = json.loads(next(wheel.read(name) for name in names if name.endswith(".dist-info/build.json")))
        cuda = tuple(map(int, build["cuda_version"].split(".")))
        assert cuda[0] == int(package[1])
        oldest = "70" if cuda[0] == 12 else "75"
        newest = ["100", "120"] if cuda >= (12, 8) else []
        assert build["architectures"] == [oldest, "80", "90", *newest, "86-virtual"]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only a checkout knows its files")
def test_the_sdist_holds_everything():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    included = pyproject(".")["tool"]["scikit-build"]["sdist"]["include"]
    assert {f"/{name.split('/')[0]}" for name in listed.splitlines()} == set(included)


# The extension that fits.

DRIVER = """
extern "C" int cuDriverGetVersion(int* version) { *version = MAJOR * 1000; return 0; }
"""


@pytest.fixture(scope="module")
def drivers(tmp_path_factory):
    """Folders with a driver library of each version, and an empty one for none."""
    folder = tmp_path_factory.mktemp("drivers")
    found = {}
    for major in (11, 12, 13, 14):
        found[major] = folder / str(major)
        found[major].mkdir()
        source = found[major] / "driver.cpp"
        source.write_text(DRIVER.replace("MAJOR", str(major)))
        subprocess.run(["g++", "-shared", "-fPIC", "-o", found[major] / "libcuda.so.1", source], check=True)
    return found


@pytest.fixture
def chosen(tmp_path, drivers):
    """Imports the pure package between stand-ins for the binary ones, and returns what it picked or its error."""

    def run(installed, *, driver=None, forced=None, extension="_ext.py"):
        package = tmp_path / "nsa_kernel"
        package.mkdir()
        for name in ("_ext.py", "_misfit.py"):
            shutil.copy(ROOT / "python/nsa_kernel" / name, package)
        (package / "_version.py").write_text('__version__ = "1.2.3"\n')
        (package / "__init__.py").write_text("from ._ext import name\n")
        for major, version in installed.items():
            binary = tmp_path / f"nsa_kernel_cu{major}"
            binary.mkdir()
            (binary / "__init__.py").touch()
            (binary / extension).write_text(f"name, __version__ = 'cu{major}', '{version}'\n")
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
        if driver:
            environment["LD_LIBRARY_PATH"] = str(drivers[driver])
        if forced:
            environment["NSA_KERNEL_CUDA_MAJOR"] = forced
        # -S keeps the installed packages out of sight.
        command = [sys.executable, "-S", "-c", "import nsa_kernel; print(nsa_kernel.name)"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]

    return run


HERE = "1.2.3"
BOTH = {12: HERE, 13: HERE}


@pytest.mark.parametrize(
    ("installed", "driver", "forced", "name"),
    [
        ({12: HERE}, None, None, "cu12"),
        ({13: HERE}, None, None, "cu13"),
        ({13: HERE}, 12, None, "cu13"),
        (BOTH, 11, None, "cu12"),
        (BOTH, 12, None, "cu12"),
        (BOTH, 13, None, "cu13"),
        (BOTH, 14, None, "cu13"),
        (BOTH, 13, "12", "cu12"),
        (BOTH, 12, "13", "cu13"),
    ],
)
def test_the_extension_that_fits_is_picked(chosen, installed, driver, forced, name):
    assert chosen(installed, driver=driver, forced=forced) == name


@pytest.mark.skipif(bool(nsa_kernel.get_kernel_info()["devices"]), reason="this machine has a driver of its own")
def test_without_a_driver_the_newest_is_picked(chosen):
    assert chosen(BOTH) == "cu13"


@pytest.mark.parametrize(
    ("installed", "driver", "forced", "message"),
    [
        ({}, 13, None, 'no extension is installed; run: pip install "nsa-kernel[cu13]==1.2.3"'),
        ({}, 12, None, 'no extension is installed; run: pip install "nsa-kernel[cu12]==1.2.3"'),
        (
            {13: "1.2.2"},
            13,
            None,
            'nsa-kernel-cu13 is version 1.2.2, must be 1.2.3; run: pip install "nsa-kernel[cu13]==1.2.3"',
        ),
        (
            {13: HERE},
            13,
            "12",
            "NSA_KERNEL_CUDA_MAJOR is 12, but nsa-kernel-cu12 is not installed; "
            'run: pip install "nsa-kernel[cu12]==1.2.3"',
        ),
        (BOTH, 13, "x", "NSA_KERNEL_CUDA_MAJOR is 'x', must be 12 or 13"),
    ],
)
def test_what_does_not_fit_is_an_import_error_that_helps(chosen, installed, driver, forced, message):
    assert chosen(installed, driver=driver, forced=forced) == f"ImportError: nsa_kernel: {message}"


# The extension that does not fit.

OTHERS = "_ext.cpython-399-x86_64-linux-gnu.so"


STABLE = "_ext.abi3.so"
HAS_STABLE = sys.version_info >= (3, 12)


def told(folder, has, command):
    fitting = " or ".join(f"_ext{suffix}" for suffix in EXTENSION_SUFFIXES if HAS_STABLE or "abi3" not in suffix)
    return f"ImportError: nsa_kernel: {folder} has {has}, must be a folder with {fitting}; run: {command}"


def import_error(*arguments, cwd=None, **environment):
    """The last line of what Python prints for the arguments."""
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""} | environment
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout
    return done.stderr.splitlines()[-1]


@pytest.fixture
def built_for_another(tmp_path):
    """A folder with a package that another Python built."""
    package = tmp_path / "site" / "nsa_kernel"
    shutil.copytree(ROOT / "python/nsa_kernel", package)
    (package / OTHERS).touch()
    (package / "_ext.pyi").touch()
    return package.parent


def test_a_build_for_another_python_is_told_from_none(built_for_another):
    said = import_error("-S", "-c", "import nsa_kernel", PYTHONPATH=str(built_for_another))
    command = f"{sys.executable} -m pip install . in a checkout of nsa-kernel"
    assert said == told(built_for_another / "nsa_kernel", OTHERS, command)


def test_a_distribution_for_another_python_is_told_from_none(chosen, tmp_path):
    said = chosen({13: HERE}, extension=OTHERS)
    assert said == told(tmp_path / "nsa_kernel_cu13", OTHERS, 'pip install "nsa-kernel[cu13]==1.2.3"')


@pytest.fixture
def stable(tmp_path):
    """A file with the name of the stable ABI, which needs what this Python lacks."""
    source = tmp_path / "stable.cpp"
    source.write_text('extern "C" void* lacking(); extern "C" void* PyInit__ext() { return lacking(); }\n')
    subprocess.run(["g++", "-shared", "-fPIC", "-o", tmp_path / STABLE, source], check=True)
    return tmp_path / STABLE


@pytest.mark.skipif(HAS_STABLE, reason="this Python has the stable ABI")
def test_a_build_of_the_stable_abi_says_that_it_is_for_newer_pythons(built_for_another, stable):
    package = built_for_another / "nsa_kernel"
    (package / OTHERS).unlink()
    shutil.copy(stable, package)
    said = import_error("-S", "-c", "import nsa_kernel", PYTHONPATH=str(built_for_another))
    command = f"{sys.executable} -m pip install . in a checkout of nsa-kernel"
    assert said == told(package, f"{STABLE} for Python 3.12 or later", command)


@pytest.mark.skipif(HAS_STABLE, reason="this Python has the stable ABI")
def test_a_distribution_of_the_stable_abi_is_not_picked(chosen, tmp_path):
    said = chosen({13: HERE}, extension=STABLE)
    has = f"{STABLE} for Python 3.12 or later"
    assert said == told(tmp_path / "nsa_kernel_cu13", has, 'pip install "nsa-kernel[cu13]==1.2.3"')


@pytest.mark.skipif(not HAS_STABLE, reason="this Python has no stable ABI")
def test_what_the_loader_says_of_a_build_that_is_for_this_python_stays(built_for_another, stable):
    shutil.copy(stable, built_for_another / "nsa_kernel")
    said = import_error("-S", "-c", "import nsa_kernel", PYTHONPATH=str(built_for_another))
    assert said.endswith("undefined symbol: lacking")


def test_the_folder_of_the_sources_says_how_to_build():
    said = import_error("-c", "import nsa_kernel", cwd=ROOT / "python")
    command = f"{sys.executable} -m pip install {ROOT}, and import outside {ROOT}/python"
    assert said == told(ROOT / "python" / "nsa_kernel", "no extension", command)


def test_an_archive_says_how_to_extract_it(built_for_another, tmp_path):
    (built_for_another / "__main__.py").write_text("import nsa_kernel\n")
    archive = tmp_path / "app.pyz"
    zipapp.create_archive(built_for_another, archive)
    command = f"{sys.executable} -m zipfile --extract {archive} FOLDER, and import from FOLDER"
    assert import_error(archive) == told(archive / "nsa_kernel", OTHERS, command)
