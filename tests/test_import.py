"""What the import and the arrays cost."""

import subprocess
import sys
import time
import timeit

import nsa_kernel
import torch


def seconds(code):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def test_the_import_takes_less_than_50_ms():
    """Best of several in turns, so that a busy machine disturbs both alike."""
    pairs = [(seconds("pass"), seconds("import nsa_kernel")) for _ in range(8)]
    bare, with_import = (min(times) for times in zip(*pairs, strict=True))
    assert with_import - bare < 0.050


def test_the_import_brings_no_framework():
    code = "import sys, nsa_kernel; print(sorted({'torch', 'numpy', 'cupy', 'jax'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_five_arrays_cost_less_than_a_tenth_of_dlpack():
    """A whole call, its work on one request included, against `__dlpack__` alone."""
    arrays = [torch.ones(1, dtype=torch.int32) for _ in range(5)]
    q, k, *outputs = arrays

    def call():
        nsa_kernel.fill_draft_extend_metadata(q, k, 7, *outputs)

    def export():
        for array in arrays:
            array.__dlpack__()

    ours, theirs = (min(timeit.repeat(function, number=1000, repeat=7)) for function in (call, export))
    assert ours < theirs / 10
