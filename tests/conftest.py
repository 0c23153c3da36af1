"""What every test may ask for: a device, and seeds for random cases."""

import contextlib
import os
from pathlib import Path

import nsa_kernel
import pytest
import torch
from fetched import fetched

# The sources stay as they are.
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(Path(__file__).parents[1] / "build/hypothesis"))


def pytest_addoption(parser):
    group = parser.getgroup("nsa_kernel")
    group.addoption("--devices", help="comma-separated devices to test; the default is every device present")
    group.addoption("--seed", type=int, default=0, help="first seed of the random cases")
    group.addoption("--cases", type=int, default=2000, help="number of random cases of each op on each device")


def devices(config):
    """The CPU always; CUDA where torch sees a device and the package has CUDA code."""
    if asked := config.getoption("--devices"):
        return asked.split(",")
    built_with_cuda = nsa_kernel.get_kernel_info()["cuda_version"]
    return ["cpu", "cuda"] if torch.cuda.is_available() and built_with_cuda else ["cpu"]


def pytest_report_header(config):
    return f"nsa_kernel {nsa_kernel.__version__}, torch {torch.__version__}, devices: {', '.join(devices(config))}"


def pytest_generate_tests(metafunc):
    if "device" in metafunc.fixturenames:
        names = devices(metafunc.config)
        if metafunc.definition.get_closest_marker("cuda"):
            absent = pytest.mark.skipif("cuda" not in names, reason="no CUDA device is tested")
            names = [pytest.param("cuda", marks=absent)]
        metafunc.parametrize("device", names, scope="session")


SLOW_FILES = ["test_emulation.py", "test_sglang_refresh.py", "test_vllm.py", "test_sglang.py"]


@pytest.hookimpl(trylast=True)  # the order that fixtures ask for comes before
def pytest_collection_modifyitems(items):
    """The slow files come first: where files run in parallel, none is left for last."""
    items.sort(key=lambda item: SLOW_FILES.index(item.path.name) if item.path.name in SLOW_FILES else len(SLOW_FILES))


def pytest_configure(config):
    config.addinivalue_line("markers", "cuda: needs a CUDA device")


@pytest.fixture
def random_cases(request):
    """Yields (seed, context); a failure inside the context tells how to run that one case again."""
    first, count = request.config.getoption("--seed"), request.config.getoption("--cases")

    @contextlib.contextmanager
    def reproducible(seed):
        try:
            yield
        except BaseException as failure:
            failure.add_note(f"one-line reproduction: pytest '{request.node.nodeid}' --seed={seed} --cases=1")
            raise

    return [(seed, reproducible(seed)) for seed in range(first, first + count)]


@pytest.fixture
def jax(monkeypatch):
    """JAX, with its devices open. Where there are several GPUs, opening them leaves another one current."""
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    module = pytest.importorskip("jax")
    current = torch.cuda.current_device() if torch.cuda.is_available() else None
    module.devices()
    if current is not None:
        torch.cuda.set_device(current)
    return module


@pytest.fixture(scope="session")
def sglang_folder(request):
    """The folder that has SGLang and what the tests need of its dependencies.

    SGLang's kernel registry is made of msgspec structs; Triton interprets SGLang's kernels where there is no GPU.
    """
    return fetched(request.config, "sglang-0.5.23", "sglang==0.5.23", "msgspec==0.21.1", "triton==3.6.0")
